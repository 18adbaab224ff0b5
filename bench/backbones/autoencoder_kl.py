"""diffusers' AutoencoderKL, which several model families have: its sizes, by its configuration."""

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
    """How many pixels a side of a latent pixel stands for."""
    return 2 ** (len(config["block_out_channels"]) - 1)


@dataclass(frozen=True)
class KlDecoder(Decoder):
    """The decoder of an AutoencoderKL."""

    config: str
    """Its configuration as JSON."""
    latent_side: int

    @property
    def picture_side(self) -> int:
        return self.latent_side * downsampling_of(json.loads(self.config))

    def build(self, tiled: bool) -> nn.Module:
        """Whole, or in diffusers' own overlapping tiles."""
        from diffusers import AutoencoderKL

        with torch.device("meta"):
            model = AutoencoderKL.from_config(json.loads(self.config))
        if tiled:
            model.enable_tiling()
            # blending goes in place, row by row: no products, but many calls
            model.blend_v = model.blend_h = lambda _, tile, __: tile
        return model

    def inputs(self, model: Any, latents: int) -> Tensor:
        return torch.empty(latents, model.config.latent_channels, self.latent_side, self.latent_side)
