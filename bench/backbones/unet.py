"""What families with diffusers' UNet2DConditionModel have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.autoencoder_kl import UNSHIFTED
from bench.backbones.pipeline.family import PipelineFamily
from bench.config.bounds import Count
from bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

CLIP_TOKENS = 77
"""The length of every prompt that CLIP encodes."""


class UnetFields(BaseModel):
    """What is read here from a UNet2DConditionModel's configuration, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    sample_size: Count = 64
    in_channels: Count = 4
    block_out_channels: Annotated[list[Count], Field(min_length=1)] = [320, 640, 1280, 1280]
    cross_attention_dim: Count = 1280
    time_cond_proj_dim: None = None
    """Networks that take the guidance scale as an input are not supported."""
    out_channels: Count = 4
    num_class_embeds: None = None
    class_embed_type: None = None
    class_embeddings_concat: Literal[False] = False
    dual_cross_attention: Literal[False] = False
    encoder_hid_dim_type: None = None


class UnetFamily(PipelineFamily):
    """Diffusion models with a UNet that cross-attends to prompts of 77 tokens."""

    network = "UNet2DConditionModel"
    folder = "unet"
    diffusion = True
    # As diffusers' own training scripts, DDPO's and D3PO's code adapt.
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    vae = UNSHIFTED
    block_lists = ("down_blocks", "mid_block", "up_blocks")
    resolution = None
    text_tokens = CLIP_TOKENS

    def latent_channels(self, config: UnetFields) -> int:
        """The network's."""
        return config.in_channels

    def latent_side(self, config: UnetFields) -> int:
        """The one that it was trained on."""
        return config.sample_size

    def patch(self, config: UnetFields) -> int:
        """Every level but the last halves the resolution."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def check(self, config: UnetFields, side: int, tokens: int) -> None:
        """CLIP pads every prompt to the same length."""
        if config.out_channels != config.in_channels:
            raise UsageError(
                f"the UNet predicts {config.out_channels} channels of latents with {config.in_channels}: only networks "
                "that predict noise, v or the image alone are supported"
            )
        if tokens != CLIP_TOKENS:
            raise UsageError(f"the family encodes {CLIP_TOKENS} tokens: leave out compute.max_sequence_length")

    def arguments(self, config: UnetFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The noisy latents at their timesteps."""
        return {"sample": x, "timestep": sigma_B, "encoder_hidden_states": conditioning["sequence"]}

    def prediction(self, config: UnetFields, output: Tensor, x: Tensor) -> Tensor:
        """The output."""
        return output
