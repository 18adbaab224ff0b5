"""Stable Diffusion 3 and 3.5: what is known of a pipeline before it is loaded."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.autoencoder_kl import downsampling_of
from bench.backbones.sd3.files import (
    DEFAULT,
    MAX_TEXT_TOKENS,
    MEDIUM,
    VAE,
    TransformerFields,
    configuration,
    fingerprint,
    folder_of,
    shift_of,
    size,
)
from bench.backbones.sd3.network import TARGETS
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.errors import UsageError
from bench.system.devices import best_device

if TYPE_CHECKING:
    from bench.backbones.sd3.backbone import Sd3Backbone
    from bench.backbones.sd3.shape_only import ShapeOnly

PUBLISHED: dict[str, Any] = {
    "resolution": 512, "precision": "bfloat16", "gradient_checkpointing": True, "batch": 64, "decode": "sliced",
}  # fmt: skip
"""Compute settings of a model of published size where nobody says: post-training is published at 512 pixels, in half
precision, and by far most of a 24 GB card would go into activations."""
LARGE = 5 * 10**8
"""Parameters from which on a transformer is of published size; the smallest that is published has 2 billion."""


def own(source: str) -> dict[str, dict]:
    """What a pipeline does where nobody says; the resolution of one that is not fetched yet is not known."""
    compute = {"max_sequence_length": MAX_TEXT_TOKENS}
    home = Path(folder_of(source))
    if home.is_dir() or source == DEFAULT:
        config, vae = configuration(home) if home.is_dir() else (MEDIUM, VAE)
        compute["resolution"] = config["sample_size"] * downsampling_of(vae)
    return {"compute": compute, "lora": {"targets": TARGETS}}


def load(source: str, shift: float, device: str, compute: Compute = PLAIN, cache: Path | None = None) -> "Sd3Backbone":
    """The backbone of a descriptor that gave `shift`. Raises UsageError if the scheduler, now fetched, has another."""
    from bench.backbones.sd3.backbone import Sd3Backbone

    backbone = Sd3Backbone(source, device, compute, cache)
    if (now := shift_of(source)) != shift:
        raise UsageError(f"the scheduler of {source}, fetched just now, has shift {now:g}: give the same command again")
    return backbone


def shape_only(device: str, compute: Compute = PLAIN) -> "ShapeOnly":
    """SD3.5-Medium's transformer with random weights."""
    from bench.backbones.sd3.shape_only import ShapeOnly

    return ShapeOnly(device, compute)


def published(source: str) -> dict | None:
    """The compute settings of a pipeline that is of published size; None for a smaller one.

    Asked for by every command: counted by the configuration, without building the model. A layer has 36 numbers for
    each pair of channels: 8 in attention and 16 in the two networks of image and text, 12 in their modulation.
    """
    home = Path(folder_of(source))
    if not home.is_dir():
        return PUBLISHED
    config, vae = configuration(home)
    told = TransformerFields.model_validate(config)
    if 36 * told.num_layers * (told.num_attention_heads * told.attention_head_dim) ** 2 < LARGE:
        return None
    larger = told.sample_size * downsampling_of(vae) > PUBLISHED["resolution"]
    return {name: value for name, value in PUBLISHED.items() if larger or name != "resolution"}


def defaults(source: str) -> dict[str, Any]:
    """What a pipeline of published size is computed with where nobody says."""
    compute = published(source)
    return {"device": best_device(), "compute": compute, "sampler": {"guidance": 4.5}} if compute else {}


def descriptor(source: str = DEFAULT) -> Descriptor:
    """SD3.5-Medium from the hub, or the pipeline at `source` (folder, single file, hub:OWNER/REPO)."""
    large = published(source)  # first: it tells a pipeline of another class, whose scheduler is not to be changed
    shift = shift_of(source)
    return Descriptor(
        name="sd3",
        world="photo",
        shift=shift,
        load=partial(load, source, shift),
        fingerprint=partial(fingerprint, source),
        own=partial(own, source),
        size=partial(size, source),
        shape_only=shape_only,
        check=partial(size, source),
        defaults=partial(defaults, source),
        recipes=Path(__file__).parent / "recipes" if large else None,
    )
