"""The drawn worlds: procedurally drawn text-to-image worlds with a tiny flow model trained on each."""

from functools import partial
from pathlib import Path

from bench.backbones.micro.files import weight_files
from bench.backbones.micro.tokens import Tokenizer
from bench.backbones.micro.worlds import DRAWN, DrawnWorld
from bench.backbones.sd3 import SD3
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.errors import UsageError
from bench.hashing import content_hash
from bench.sampler.levels import FlowLevels
from bench.system.files import read_json


def _load(world: DrawnWorld, device: str, compute: Compute = PLAIN, cache: Path | None = None):
    """Load a world's backbone. `cache` is ignored, since encoding a prompt is faster than reading a file."""
    from bench.backbones.micro.backbone import MicroBackbone

    return MicroBackbone(world, device, compute)


def _check(world: DrawnWorld, compute: Compute) -> None:
    """Reject settings that have no effect here: the same run would get a different hash."""
    if compute.resolution is not None:
        raise UsageError("a drawn world has a fixed image size: leave out compute.resolution")
    if compute.max_sequence_length is not None:
        raise UsageError("a drawn world has a fixed prompt length: leave out compute.max_sequence_length")
    Tokenizer(world.shapes).ids_of(compute.negative_prompt)  # raises for words that the world does not have


def _fingerprint(world: DrawnWorld) -> str:
    world.require(world.base / "codec.safetensors")
    return content_hash(weight_files(world.base))


def describe_world(world: DrawnWorld) -> Descriptor:
    """The descriptor of a drawn world, whose weights are part of the package."""
    guidance = world.weights / "base_guidance.json"
    return Descriptor(
        name=world.name,
        world=world.name,
        levels=FlowLevels(3.0),
        load=partial(_load, world),
        check=partial(_check, world),
        own=lambda: {"lora": {"targets": SD3.targets}},
        fingerprint=partial(_fingerprint, world),
        recipes=world.recipes,
        teachers=world.weights / "teachers",
        evaluations=world.weights / "evaluations",
        backward_cost=1.25,
        base_guidance=read_json(guidance) if guidance.is_file() else None,
    )


def descriptor() -> Descriptor:
    """The descriptor of `micro`."""
    return describe_world(DRAWN["micro"])


def study_1() -> Descriptor:
    """The descriptor of the study's first world."""
    return describe_world(DRAWN["study-1"])


def study_2() -> Descriptor:
    """The descriptor of the study's second world."""
    return describe_world(DRAWN["study-2"])


def study_3() -> Descriptor:
    """The descriptor of the study's third world."""
    return describe_world(DRAWN["study-3"])
