"""Sizes of diffusers' AutoencoderKL, which several model families use, from its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.backbones.network import Decoder
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def downsampling_of(config: Mapping[str, Any]) -> int:
    """Image pixels per latent pixel, along one side."""
    return 2 ** (len(config["block_out_channels"]) - 1)


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
