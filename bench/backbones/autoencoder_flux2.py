"""diffusers' AutoencoderKLFlux2, whose latents the network sees as normalised patches of 2 x 2 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.packing import PATCH
from bench.backbones.vae import Vae
from bench.config.bounds import Count
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Flux2VaeFields(BaseModel):
    """The fields of its config.json that are used here."""

    model_config = ConfigDict(strict=True)
    latent_channels: Count = 32
    block_out_channels: Annotated[list[Count], Field(min_length=1)] = [128, 256, 512, 512]
    patch_size: tuple[Literal[2], Literal[2]] = Field(default=(2, 2), strict=False)


class Flux2Vae(Vae):
    """A latent here has the four pixels of a patch as channels, each normalised by its running mean and variance."""

    kind = "AutoencoderKLFlux2"
    fields = Flux2VaeFields

    def channels(self, fields: Flux2VaeFields) -> int:
        """Those of a patch."""
        return PATCH**2 * fields.latent_channels

    def downsampling(self, config: Mapping[str, Any]) -> int:
        """Each level but the last halves the resolution, and so does a patch."""
        return PATCH * 2 ** (len(Flux2VaeFields.model_validate(config).block_out_channels) - 1)

    def encode(self, model: Any, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents: the mode of the VAE's distribution, not a sample."""
        latents = model.encode(2 * images_BCHW.to(model.dtype) - 1, return_dict=False)[0].mode()
        mean, std = _statistics(model)
        return ((torch.nn.functional.pixel_unshuffle(latents, PATCH) - mean) / std).float()

    def decode(self, model: Any, latents_BCHW: Tensor) -> Tensor:
        """Latents -> images [B, 3, H, W], float32 in [0, 1]."""
        mean, std = _statistics(model)
        latents = torch.nn.functional.pixel_shuffle(latents_BCHW.to(model.dtype) * std + mean, PATCH)
        return (model.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def decoder_input(self, model: Any, latents: int, side: int) -> Tensor:
        """[B, C, 2 h, 2 w]."""
        return torch.empty(latents, model.config.latent_channels, PATCH * side, PATCH * side)


def _statistics(model: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a patch's channels, [1, 4 C, 1, 1]."""
    mean, variance = (of.view(1, -1, 1, 1) for of in (model.bn.running_mean, model.bn.running_var))
    return mean, (variance + model.config.batch_norm_eps).sqrt()


FLUX2 = Flux2Vae()
