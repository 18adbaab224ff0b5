"""Stable Diffusion 3 and 3.5: what is known about a pipeline before it is loaded."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.autoencoder_kl import KL
from bench.backbones.sd3.files import (
    DEFAULT,
    MAX_TEXT_TOKENS,
    MEDIUM,
    PIPELINE,
    VAE,
    TransformerFields,
    configuration,
    fingerprint,
    folder_of,
    shift_of,
    size,
)
from bench.backbones.sd3.network import TARGETS
from bench.backbones.sd3.single_file import is_checkpoint
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.config.families import Family
from bench.errors import UsageError
from bench.sampler.levels import FlowLevels
from bench.system.devices import best_device
from bench.weights.hub import PREFIX, refuse_shadowed

if TYPE_CHECKING:
    from bench.backbones.sd3.backbone import Sd3Backbone
    from bench.backbones.sd3.shape_only import ShapeOnly

PUBLISHED: dict[str, Any] = {
    "resolution": 512, "precision": "bfloat16", "gradient_checkpointing": True, "batch": 64, "decode": "sliced",
}  # fmt: skip
"""Default compute settings for models of published size.

Published post-training uses 512 pixels and half precision; without checkpointing, activations would fill most of a
24 GB card.
"""
LARGE = 5 * 10**8
"""Number of parameters from which a transformer counts as of published size; the smallest published has 2 billion."""


def own(source: str) -> dict[str, dict]:
    """A pipeline's own default settings; without the resolution if the pipeline has not been downloaded yet."""
    compute = {"max_sequence_length": MAX_TEXT_TOKENS}
    home = Path(folder_of(source))
    if home.is_dir() or source == DEFAULT:
        config, vae = configuration(home) if home.is_dir() else (MEDIUM, VAE)
        compute["resolution"] = config["sample_size"] * KL.downsampling(vae)
    return {"compute": compute, "lora": {"targets": TARGETS}}


def load(source: str, shift: float, device: str, compute: Compute = PLAIN, cache: Path | None = None) -> "Sd3Backbone":
    """Load the backbone for a descriptor with this `shift`.

    Raises UsageError if the scheduler turns out to have a different shift now that it has been downloaded.
    """
    from bench.backbones.sd3.backbone import Sd3Backbone

    backbone = Sd3Backbone(source, device, compute, cache)
    now = shift_of(source)
    if now != shift:
        raise UsageError(f"the scheduler of {source}, just downloaded, has shift {now:g}: run the same command again")
    return backbone


def shape_only(device: str, compute: Compute = PLAIN) -> "ShapeOnly":
    """SD3.5-Medium's transformer with random weights."""
    from bench.backbones.sd3.shape_only import ShapeOnly

    return ShapeOnly(device, compute)


def published(source: str) -> dict | None:
    """Default compute settings of a pipeline of published size; None for a smaller one.

    Every command calls this, so the size is estimated from the configuration, without building the model.
    """
    home = Path(folder_of(source))
    if not home.is_dir():
        return PUBLISHED
    config, vae = configuration(home)
    told = TransformerFields.model_validate(config)
    width = told.num_attention_heads * told.attention_head_dim
    # Per layer 36 width^2 parameters: 8 in attention, 16 in the MLPs of image and text, and 12 in their modulation.
    if 36 * told.num_layers * width**2 < LARGE:
        return None
    # A pipeline of at most 512 pixels keeps its own resolution.
    larger = told.sample_size * KL.downsampling(vae) > PUBLISHED["resolution"]
    return {name: value for name, value in PUBLISHED.items() if larger or name != "resolution"}


def defaults(source: str) -> dict[str, Any]:
    """Default settings of a pipeline of published size; empty for a smaller one."""
    compute = published(source)
    return {"device": best_device(), "compute": compute, "sampler": {"guidance": 4.5}} if compute else {}


def descriptor(source: str = DEFAULT) -> Descriptor:
    """SD3.5-Medium from the hub, or the pipeline at `source` (folder, single file, hub:OWNER/REPO)."""
    if source.startswith(PREFIX):
        refuse_shadowed(source)
    # In this order: `published` rejects pipelines of a different class, before their scheduler is read and blamed.
    large = published(source)
    shift = shift_of(source)
    return Descriptor(
        name="sd3",
        world="photo",
        levels=FlowLevels(shift),
        load=partial(load, source, shift),
        fingerprint=partial(fingerprint, source),
        own=partial(own, source),
        size=partial(size, source),
        shape_only=shape_only,
        check=partial(size, source),
        defaults=partial(defaults, source),
        recipes=Path(__file__).parent / "recipes" if large else None,
    )


def family() -> Family:
    """Pipelines of SD3 and SD3.5, and single files with an SD3 transformer."""
    return Family((PIPELINE,), descriptor, is_checkpoint, (DEFAULT,))
