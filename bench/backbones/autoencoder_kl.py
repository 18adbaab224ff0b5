"""diffusers' AutoencoderKL, which several model families use: images to latents and back, and its size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.network import Decoder
from bench.config.bounds import Positive
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def downsampling_of(config: Mapping[str, Any]) -> int:
    """Image pixels per latent pixel, along one side."""
    return 2 ** (len(config["block_out_channels"]) - 1)


class VaeFields(BaseModel):
    """The fields of a VAE's config.json that are used here; older VAEs have no shift."""

    model_config = ConfigDict(strict=True)
    block_out_channels: Annotated[list[Annotated[int, Field(gt=0, le=100_000)]], Field(min_length=1)]
    latent_channels: Annotated[int, Field(gt=0, le=100_000)] = 4
    scaling_factor: Positive = 1.0
    shift_factor: Annotated[float, Field(allow_inf_nan=False)] | None = None


def encoded(vae: Any, images_BCHW: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> latents [B, C, h, w]: the mode of the VAE's distribution, not a sample."""
    config, pixels = vae.config, 2 * images_BCHW.to(vae.dtype) - 1
    latents = vae.encode(pixels, return_dict=False)[0].mode()
    return ((latents - (config.shift_factor or 0)) * config.scaling_factor).float()


def decoded(vae: Any, latents_BCHW: Tensor) -> Tensor:
    """Latents [B, C, h, w] -> images [B, 3, H, W], float32 in [0, 1]."""
    config = vae.config
    latents = latents_BCHW.to(vae.dtype) / config.scaling_factor + (config.shift_factor or 0)
    images = vae.decode(latents, return_dict=False)[0].float()
    return (images / 2 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class KlDecoder(Decoder):
    """The decoder of an AutoencoderKL, for counting its compute."""

    config: str
    """The VAE's configuration as JSON, because instances must be hashable."""
    latent_side: int
    """Latent pixels along one side."""

    @property
    def picture_side(self) -> int:
        """Image pixels along one side."""
        return self.latent_side * downsampling_of(json.loads(self.config))

    def build(self, tiled: bool) -> nn.Module:
        """The VAE on the meta device; `tiled` decodes in diffusers' overlapping tiles."""
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            model = AutoencoderKL.from_config(json.loads(self.config))
        if tiled:
            model.enable_tiling()
            # Blending tiles takes many small in-place calls, which are slow to count and add no matrix products.
            model.blend_v = model.blend_h = lambda _, tile, __: tile
        return model

    def inputs(self, model: Any, latents: int) -> Tensor:
        """Empty latents [B, C, h, w] for a batch of `latents`."""
        return torch.empty(latents, model.config.latent_channels, self.latent_side, self.latent_side)
