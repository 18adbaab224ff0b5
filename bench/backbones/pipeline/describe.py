"""The descriptor of a pipeline of any PipelineFamily. This file does not import torch."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.pipeline.family import PipelineFamily, SingleFile
from bench.backbones.pipeline.network import pipeline_size
from bench.backbones.pipeline.source import (
    Configuration,
    address_of,
    configuration,
    fingerprint,
    home_of,
    is_file,
    require_parts,
)
from bench.backbones.pipeline_files import NETWORKS, stored_parameters, weight_files
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
    from bench.backbones.pipeline.shape_only import ShapeOnly

LARGE: dict[str, Any] = {"precision": "bfloat16", "decode": "sliced"}
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
    reads = family.file.recognises if family.file else None
    return Family((family.pipeline,), partial(describe_source, family), reads, family.name, tuple(family.published))


def describe_source(family: PipelineFamily, source: str) -> Descriptor:
    """The descriptor of the pipeline at a folder or hub:OWNER/REPO. Raises UsageError for one that cannot be run."""
    told = configuration(family, source)
    return Descriptor(
        name=family.name,
        world="photo",
        levels=partial(_levels, family, told),
        load=partial(_load, family, source, told),
        fingerprint=partial(fingerprint, family, source),
        own=partial(_own, family, told),
        size=partial(_size, family, source, told),
        check=partial(_check, family, source, told),
        defaults=partial(_defaults, family, source, told),
        recipes=(family.recipes,) if family.recipes and _is_large(family, source) else (),
        shape_only=partial(_shape_only, family, told) if source in family.published else None,
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
    home = Path(home_of(family, source))
    _check_files(family, source, told)
    if home.is_dir():
        parts = [part for part in (*family.encoders, "vae") if part not in told.without]
        # A single file may have a part that its folder lacks.
        kept = [part for part in parts if (home / part).is_dir() or not is_file(source)]
        frozen = {part: stored_parameters(home / part) for part in kept}
    else:
        known = family.published.get(address_of(family, source))
        frozen = known.frozen if known else {}
    tokens = family.tokens(compute)
    if family.padded:  # prompts are as long as they are
        tokens = min(tokens, FEW_TOKENS)
    shapes = family.prompt_shapes(told.fields, tokens)
    side = told.side(family, compute.resolution)
    return pipeline_size(family, told.network, side, shapes, frozen, told.vae)


def _check(family: PipelineFamily, source: str, told: Configuration, compute: Compute) -> None:
    """Raise UsageError for a resolution, a length of prompts or a way to compute that the model cannot take.

    The network's files are looked at too: their headers and lengths.
    """
    _check_files(family, source, told)
    if compute.gradient_checkpointing and not family.checkpoints:
        raise UsageError(
            f"{family.network} has no gradient checkpointing in diffusers: set compute.gradient_checkpointing=false"
        )
    if compute.negative_prompt and family.embedded_guidance(told.fields):
        raise UsageError(
            "compute.negative_prompt has no effect: the network takes the guidance scale and no other prompt"
        )
    told.checked_side(family, compute.resolution, compute)


def _defaults(family: PipelineFamily, source: str, told: Configuration) -> dict[str, Any]:
    """The pipeline's way to sample; sensible compute settings for a model of published size."""
    table = _levels(family, told, PLAIN).table
    found: dict[str, Any] = {"sampler": {"table": table, "guidance": family.guidance(told.fields, told.options)}}
    if _is_large(family, source):
        own = _own(family, told)["compute"]["resolution"]
        smaller = {"resolution": family.resolution} if family.resolution and family.resolution < own else {}
        more = {"batch": family.batch, "gradient_checkpointing": family.checkpoints}
        found |= {"device": best_device(), "compute": smaller | LARGE | more}
    return found


def _check_files(family: PipelineFamily, source: str, told: Configuration) -> None:
    """Raise for files on this machine that are missing, and for files of the network that are corrupt or of another
    kind."""
    home = Path(home_of(family, source))
    if is_file(source):
        _file(family).check(Path(source))
    elif home.is_dir():
        require_parts(family, home, told.without)
        stored_parameters(home / family.folder)


def _is_large(family: PipelineFamily, source: str) -> bool:
    """Whether a model is of published size: it is on the hub, or the files that are read of its network are large."""
    home = Path(home_of(family, source))
    if is_file(source):
        files = [Path(source)]
    elif home.is_dir():
        files = [path for path in weight_files(home / family.folder) if path.is_file()]
    else:
        return True
    return sum(path.stat().st_size for path in files) > LARGE_BYTES


def _file(family: PipelineFamily) -> SingleFile:
    assert family.file is not None  # or no file would be of the family
    return family.file


def _shape_only(family: PipelineFamily, told: Configuration, device: str, compute: Compute = PLAIN) -> "ShapeOnly":
    """A published model with random weights."""
    from bench.backbones.pipeline.shape_only import ShapeOnly

    return ShapeOnly(family, told, device, compute)
