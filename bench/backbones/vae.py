"""What differs between classes of VAEs: shapes, and how latents are scaled on their way into and out of them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from bench.backbones.network import Decoder, of_shape

if TYPE_CHECKING:
    from torch import Tensor, nn


class Vae(ABC):
    """A class of VAEs in diffusers. Latents are those that the network sees, [B, C, h, w]."""

    kind: ClassVar[str]
    """Name of the class in diffusers."""
    fields: ClassVar[type[BaseModel]]
    """The fields of its configuration that are read, with diffusers' defaults."""

    @abstractmethod
    def channels(self, fields: Any) -> int:
        """Channels of a latent."""

    @abstractmethod
    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Image pixels per latent pixel, along one side."""

    @abstractmethod
    def encode(self, model: Any, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents: the mode of the VAE's distribution, not a sample."""

    @abstractmethod
    def decode(self, model: Any, latents_BCHW: Tensor) -> Tensor:
        """Latents -> images [B, 3, H, W], float32 in [0, 1]."""

    @abstractmethod
    def decoder_input(self, model: Any, latents: int, side: int) -> Tensor:
        """An empty argument of the model's `decode`, for a batch of latents of `side` x `side`."""


@dataclass(frozen=True)
class VaeDecoder(Decoder):
    """The decoder of a VAE, for counting its compute."""

    vae: Vae
    config: str
    """The VAE's configuration as JSON, because instances must be hashable."""
    latent_side: int
    """Latent pixels along one side."""

    @property
    def picture_side(self) -> int:
        """Image pixels along one side."""
        return self.latent_side * self.vae.downsampling(json.loads(self.config))

    def build(self, tiled: bool) -> nn.Module:
        """The VAE on the meta device; `tiled` decodes in diffusers' overlapping tiles."""
        model = of_shape(self.vae.kind, json.loads(self.config))
        if tiled:
            model.enable_tiling()
            # Blending tiles takes many small in-place calls, which are slow to count and add no matrix products.
            model.blend_v = model.blend_h = lambda _, tile, __: tile
        return model

    def inputs(self, model: Any, latents: int) -> Tensor:
        """Empty latents for a batch of `latents`."""
        return self.vae.decoder_input(model, latents, self.latent_side)
