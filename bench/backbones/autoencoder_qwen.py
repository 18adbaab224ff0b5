"""diffusers' AutoencoderKLQwenImage: a VAE of videos, of which an image is one frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from bench.backbones.vae import Vae
from bench.config.bounds import Count
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class QwenFields(BaseModel):
    """The fields of its config.json that are used here."""

    model_config = ConfigDict(strict=True)
    z_dim: Count = 16
    latents_mean: list[float]
    latents_std: list[float]
    temperal_downsample: list[bool]  # diffusers' spelling


class Qwen(Vae):
    """Latents are standardised channel by channel."""

    kind = "AutoencoderKLQwenImage"
    fields = QwenFields

    def channels(self, fields: QwenFields) -> int:
        """As the configuration says."""
        return fields.z_dim

    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Each of these levels halves the resolution, whether it also halves the frames or not."""
        return 2 ** len(config["temperal_downsample"])

    def encode(self, model: Any, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents: the mode of the VAE's distribution, not a sample."""
        mean, std = self._statistics(model)
        pixels = 2 * images_BCHW.to(model.dtype) - 1
        latents = model.encode(pixels.unsqueeze(2), return_dict=False)[0].mode()
        return ((latents - mean) / std).squeeze(2).float()

    def decode(self, model: Any, latents_BCHW: Tensor) -> Tensor:
        """Latents -> images [B, 3, H, W], float32 in [0, 1]."""
        mean, std = self._statistics(model)
        latents = latents_BCHW.to(model.dtype).unsqueeze(2) * std + mean
        images = model.decode(latents, return_dict=False)[0].squeeze(2).float()
        return (images / 2 + 0.5).clamp(0, 1)

    def decoder_input(self, model: Any, latents: int, side: int) -> Tensor:
        """[B, C, 1, h, w]."""
        return torch.empty(latents, model.config.z_dim, 1, side, side)

    @staticmethod
    def _statistics(model: Any) -> tuple[Tensor, Tensor]:
        told = torch.tensor([model.config.latents_mean, model.config.latents_std], dtype=model.dtype)
        mean, std = told.to(model.device).view(2, 1, -1, 1, 1, 1)
        return mean, std


QWEN = Qwen()
