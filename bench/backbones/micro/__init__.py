"""The micro world: a procedurally drawn text-to-image world and a tiny flow model trained on it."""

from pathlib import Path

from bench.backbones.micro.files import WEIGHTS, weight_files
from bench.backbones.micro.tokens import Tokenizer
from bench.backbones.sd3 import SD3
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.errors import UsageError
from bench.hashing import content_hash
from bench.sampler.levels import FlowLevels
from bench.system.files import read_json


def _load(device: str, compute: Compute = PLAIN, cache: Path | None = None):
    """Load the micro backbone. `cache` is ignored, since encoding a prompt is faster than reading a file."""
    from bench.backbones.micro.backbone import MicroBackbone

    return MicroBackbone(WEIGHTS / "base", device, compute)


def _check(compute: Compute) -> None:
    """Reject settings that have no effect here: the same run would get a different hash."""
    if compute.resolution is not None:
        raise UsageError("the micro world has a fixed image size: leave out compute.resolution")
    if compute.max_sequence_length is not None:
        raise UsageError("the micro world has a fixed prompt length: leave out compute.max_sequence_length")
    Tokenizer().ids_of(compute.negative_prompt)  # raises for words that the world does not have


def _fingerprint() -> str:
    return content_hash(weight_files(WEIGHTS / "base"))


def descriptor() -> Descriptor:
    """The descriptor of the micro backbone, whose weights are part of the package."""
    guidance = WEIGHTS / "base_guidance.json"
    return Descriptor(
        name="micro",
        world="micro",
        levels=FlowLevels(3.0),
        load=_load,
        check=_check,
        own=lambda: {"lora": {"targets": SD3.targets}},
        fingerprint=_fingerprint,
        recipes=Path(__file__).parent / "recipes",
        teachers=WEIGHTS / "teachers",
        evaluations=WEIGHTS / "evaluations",
        base_guidance=read_json(guidance) if guidance.is_file() else None,
    )
