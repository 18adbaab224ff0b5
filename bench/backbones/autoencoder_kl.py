"""diffusers' AutoencoderKL, the VAE of several model families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.vae import Vae
from bench.config.bounds import Count, Positive
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class KlFields(BaseModel):
    """The fields of a VAE's config.json that are used here; older VAEs have no shift."""

    model_config = ConfigDict(strict=True)
    block_out_channels: Annotated[list[Count], Field(min_length=1)]
    latent_channels: Count = 4
    scaling_factor: Positive = 1.0
    shift_factor: Annotated[float, Field(allow_inf_nan=False)] | None = None
    latents_mean: None = None
    latents_std: None = None
    """Latents that are scaled channel by channel are not supported."""


class Kl(Vae):
    """Latents are shifted and scaled by one number each."""

    kind = "AutoencoderKL"
    fields: ClassVar[type[KlFields]] = KlFields

    def channels(self, fields: KlFields) -> int:
        """As the configuration says."""
        return fields.latent_channels

    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Each level but the last halves the resolution."""
        return 2 ** (len(config["block_out_channels"]) - 1)

    def encode(self, model: Any, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents: the mode of the VAE's distribution, not a sample."""
        config, pixels = model.config, 2 * images_BCHW.to(model.dtype) - 1
        latents = model.encode(pixels, return_dict=False)[0].mode()
        return ((latents - (config.shift_factor or 0)) * config.scaling_factor).float()

    def decode(self, model: Any, latents_BCHW: Tensor) -> Tensor:
        """Latents -> images [B, 3, H, W], float32 in [0, 1]."""
        config = model.config
        latents = latents_BCHW.to(model.dtype) / config.scaling_factor + (config.shift_factor or 0)
        images = model.decode(latents, return_dict=False)[0].float()
        return (images / 2 + 0.5).clamp(0, 1)

    def decoder_input(self, model: Any, latents: int, side: int) -> Tensor:
        """[B, C, h, w]."""
        return torch.empty(latents, model.config.latent_channels, side, side)


class UnshiftedFields(KlFields):
    """Without a shift, which pipelines that are older than it ignore."""

    shift_factor: None = None


class Unshifted(Kl):
    """Latents are scaled only."""

    fields = UnshiftedFields


KL = Kl()
"""AutoencoderKL."""
UNSHIFTED = Unshifted()
"""AutoencoderKL in pipelines that leave out its shift."""
