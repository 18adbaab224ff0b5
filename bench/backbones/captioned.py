"""What families of transformers that cross-attend to padded captions have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from bench.backbones.pipeline.family import PipelineFamily
from bench.config.bounds import Count

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning


class CaptionedFields(BaseModel):
    """What is read here from the network's configuration; the subclasses have diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    sample_size: Count
    patch_size: Count
    in_channels: Count
    caption_channels: Count


class CaptionedFamily(PipelineFamily):
    """Networks that take a prompt as padded states with a mask, and may predict a variance besides."""

    resolution = None
    text_tokens = 300

    def latent_channels(self, config: CaptionedFields) -> int:
        """The network's."""
        return config.in_channels

    def latent_side(self, config: CaptionedFields) -> int:
        """The one that it was trained on."""
        return config.sample_size

    def patch(self, config: CaptionedFields) -> int:
        """The network's."""
        return config.patch_size

    def prompt_shapes(self, config: CaptionedFields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`."""
        return {"sequence": (tokens, config.caption_channels), "mask": (tokens,)}

    def arguments(self, config: Any, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The latents and the prompts."""
        return {
            "hidden_states": x,
            "encoder_hidden_states": conditioning["sequence"],
            "encoder_attention_mask": conditioning["mask"],
            "timestep": sigma_B,
        }

    def prediction(self, config: CaptionedFields, output: Tensor, x: Tensor) -> Tensor:
        """Without the variance."""
        return output[:, : x.shape[1]]
