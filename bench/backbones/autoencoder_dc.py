"""diffusers' AutoencoderDC, the deep compression autoencoder of SANA (arXiv 2410.10733)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.vae import Vae
from bench.config.bounds import Count, Positive
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class DcFields(BaseModel):
    """The fields of its config.json that are used here."""

    model_config = ConfigDict(strict=True)
    latent_channels: Count = 32
    encoder_block_out_channels: Annotated[list[Count], Field(min_length=1)] = [128, 256, 512, 512, 1024, 1024]
    scaling_factor: Positive = 1.0


class Dc(Vae):
    """Latents are scaled by one number. The encoder has no distribution."""

    kind = "AutoencoderDC"
    fields = DcFields

    def channels(self, fields: DcFields) -> int:
        """As the configuration says."""
        return fields.latent_channels

    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Each level but the last halves the resolution."""
        return 2 ** (len(DcFields.model_validate(config).encoder_block_out_channels) - 1)

    def encode(self, model: Any, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents."""
        latents = model.encode(2 * images_BCHW.to(model.dtype) - 1, return_dict=False)[0]
        return (latents * model.config.scaling_factor).float()

    def decode(self, model: Any, latents_BCHW: Tensor) -> Tensor:
        """Latents -> images [B, 3, H, W], float32 in [0, 1]."""
        latents = latents_BCHW.to(model.dtype) / model.config.scaling_factor
        return (model.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def decoder_input(self, model: Any, latents: int, side: int) -> Tensor:
        """[B, C, h, w]."""
        return torch.empty(latents, model.config.latent_channels, side, side)


DC = Dc()
