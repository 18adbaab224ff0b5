"""The descriptor of a pipeline of any PipelineFamily. This file does not import torch."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline.network import pipeline_size
from bench.backbones.pipeline.source import Configuration, configuration, fingerprint, home_of
from bench.backbones.pipeline_files import NETWORKS, stored_parameters
from bench.backbones.size import Size
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.config.families import Family
from bench.errors import UsageError
from bench.sampler.levels import Levels
from bench.sampler.schedule import TABLES
from bench.system.devices import best_device

if TYPE_CHECKING:
    from bench.backbones.pipeline.backbone import PipelineBackbone

LARGE: dict[str, Any] = {
    "precision": "bfloat16", "gradient_checkpointing": True, "batch": 16, "decode": "sliced",
}  # fmt: skip
"""Default compute settings for models of published size, which would not fit a GPU otherwise."""
LARGE_BYTES = 10**9
"""Size of the network's files from which a model counts as of published size."""
FEW_TOKENS = 128
"""Tokens for which prompts of different lengths are counted: more than all but a few prompts of the tasks have."""


def family_of(family: PipelineFamily) -> Family:
    """The registered Family of a PipelineFamily. Raises TypeError if it lacks an attribute or has a wrong table."""
    lacking = [name for name in PipelineFamily.__annotations__ if not hasattr(family, name)]
    if lacking:
        raise TypeError(f"{type(family).__name__} lacks {', '.join(lacking)}")
    family.followed()
    for name, known in (("table", TABLES), ("folder", NETWORKS)):
        if (value := getattr(family, name)) not in known:
            raise TypeError(f"{type(family).__name__} has {name} {value!r}, not one of {', '.join(known)}")
    return Family((family.pipeline,), partial(describe_source, family), published=tuple(family.published))


def describe_source(family: PipelineFamily, source: str) -> Descriptor:
    """The descriptor of the pipeline at a folder or hub:OWNER/REPO. Raises UsageError for one that cannot be run."""
    told = configuration(family, source)
    return Descriptor(
        name=family.name,
        world="photo",
        levels=partial(_levels, family, told),
        load=partial(_load, family, source, told),
        fingerprint=partial(fingerprint, source),
        own=partial(_own, family, told),
        size=partial(_size, family, source, told),
        check=partial(_check, family, told),
        defaults=partial(_defaults, family, source, told),
        embedded_guidance=family.embedded_guidance(told.fields),
    )


def _levels(family: PipelineFamily, told: Configuration, compute: Compute) -> Levels:
    return family.levels(told.fields, told.scheduler, told.side(family, compute.resolution))


def _load(
    family: PipelineFamily,
    source: str,
    told: Configuration,
    device: str,
    compute: Compute = PLAIN,
    cache: Path | None = None,
) -> "PipelineBackbone":
    """Load the backbone. Raises UsageError if its configurations, downloaded only now, differ from the published."""
    from bench.backbones.pipeline.backbone import PipelineBackbone

    backbone = PipelineBackbone(family, source, told, device, compute, cache)
    if not told.exact:
        now = configuration(family, source)
        if now.fields != told.fields or _levels(family, now, compute) != _levels(family, told, compute):
            raise UsageError(f"the configuration of {source}, just downloaded, is not as published: run again")
    return backbone


def _own(family: PipelineFamily, told: Configuration) -> dict[str, dict[str, Any]]:
    """Its own values of settings, which do not change a run's hash when they are set."""
    resolution = family.latent_side(told.fields) * family.vae.downsampling(told.vae)
    compute = {"max_sequence_length": family.text_tokens, "resolution": resolution}
    return {"compute": compute, "lora": {"targets": family.targets}}


def _size(family: PipelineFamily, source: str, told: Configuration, compute: Compute) -> Size:
    home = Path(home_of(source))
    if home.is_dir():
        stored_parameters(home / family.folder)  # raises for corrupt files
        frozen = {part: stored_parameters(home / part) for part in (*family.encoders, "vae")}
    else:
        known = family.published.get(source)
        frozen = known.frozen if known else {}
    tokens = family.tokens(compute)
    if family.padded:  # prompts are as long as they are
        tokens = min(tokens, FEW_TOKENS)
    shapes = family.prompt_shapes(told.fields, tokens)
    side = told.side(family, compute.resolution)
    return pipeline_size(family, told.network, side, shapes, frozen, told.vae)


def _check(family: PipelineFamily, told: Configuration, compute: Compute) -> None:
    """Raise UsageError for a resolution, a length of prompts or a way to compute that the model cannot take."""
    if compute.gradient_checkpointing and not family.checkpoints:
        raise UsageError(
            f"{family.network} has no gradient checkpointing in diffusers: set compute.gradient_checkpointing=false"
        )
    if compute.negative_prompt and family.embedded_guidance(told.fields):
        raise UsageError(
            "compute.negative_prompt has no effect: the network takes the guidance scale and no other prompt"
        )
    side = told.side(family, compute.resolution)
    family.check(told.fields, side, family.tokens(compute))


def _defaults(family: PipelineFamily, source: str, told: Configuration) -> dict[str, Any]:
    """The pipeline's way to sample; sensible compute settings for a model of published size."""
    table = _levels(family, told, PLAIN).table
    found: dict[str, Any] = {"sampler": {"table": table, "guidance": family.guidance(told.fields, told.options)}}
    home = Path(home_of(source))
    if not home.is_dir() or _bytes(home / family.folder) > LARGE_BYTES:
        smaller = {"resolution": family.resolution} if family.resolution else {}
        found |= {"device": best_device(), "compute": smaller | LARGE | {"gradient_checkpointing": family.checkpoints}}
    return found


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
