"""SDXL: a UNet that predicts noise, and that also takes a pooled embedding of the prompt and the size of the image.
As diffusers' StableDiffusionXLPipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from bench.backbones.autoencoder_kl import Unshifted, UnshiftedFields
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import Published
from bench.backbones.stable_diffusion import FROZEN as FROZEN_SD
from bench.backbones.stable_diffusion import VAE as VAE_SD
from bench.backbones.unet import UnetFamily, UnetFields
from bench.config.bounds import Count
from bench.config.families import Family
from bench.errors import UsageError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

DOWNSAMPLING = 8
"""Image pixels per latent pixel, which the network is told the image's size by."""
SIZE_NUMBERS, EACH = 6, 256
"""The network takes six numbers about the image's size, of which each becomes so many features."""
UNET: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": EACH, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE: dict[str, Any] = VAE_SD | {"scaling_factor": 0.13025}
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
FROZEN = FROZEN_SD | {"text_encoder_2": 694_659_840}
"""Parameters of CLIP-L's and OpenCLIP-bigG's text models and of the VAE."""


class SdxlFields(UnetFields):
    """With the further inputs."""

    addition_embed_type: Literal["text_time"]
    addition_time_embed_dim: Count
    projection_class_embeddings_input_dim: Count


class SdxlVaeFields(UnshiftedFields):
    """A VAE that takes 8 x 8 pixels to one."""

    block_out_channels: Annotated[list[Count], Field(min_length=4, max_length=4)]


class SdxlVae(Unshifted):
    """AutoencoderKL with four levels."""

    fields = SdxlVaeFields


class Sdxl(UnetFamily):
    """SDXL and pipelines of the same class."""

    name = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    encoders: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    tokenizers = ("tokenizer", "tokenizer_2")
    fields = SdxlFields
    vae = SdxlVae()
    optional = ("feature_extractor", "image_encoder")
    published: ClassVar = {
        "hub:stabilityai/stable-diffusion-xl-base-1.0": Published(UNET, VAE, SCHEDULER, FROZEN),
    }

    def check(self, config: UnetFields, side: int, tokens: int) -> None:
        """The features of the image's size must leave room for those of the prompt."""
        super().check(config, side, tokens)
        assert isinstance(config, SdxlFields)
        if config.projection_class_embeddings_input_dim <= SIZE_NUMBERS * config.addition_time_embed_dim:
            raise UsageError(
                "the UNet's projection_class_embeddings_input_dim must be more than "
                f"{SIZE_NUMBERS * config.addition_time_embed_dim}, six times its addition_time_embed_dim"
            )

    def guidance(self, config: SdxlFields, options: Mapping[str, Any]) -> float:
        """The pipeline's default."""
        return 5.0

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The last but one hidden states of both text models, and the pooled embedding of the second."""
        sequence, _, pooled, _ = pipeline.encode_prompt(prompt, None, device, 1, do_classifier_free_guidance=False)
        return {"sequence": sequence, "pooled": pooled}

    def encode_negative(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Without one, zeros in pipelines that say so, as SDXL's does."""
        encoded = self.encode(pipeline, prompt, tokens, device)
        if prompt or not pipeline.config.force_zeros_for_empty_prompt:
            return encoded
        return {name: torch.zeros_like(tensor) for name, tensor in encoded.items()}

    def prompt_shapes(self, config: SdxlFields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`."""
        pooled = config.projection_class_embeddings_input_dim - SIZE_NUMBERS * config.addition_time_embed_dim
        return {"sequence": (tokens, config.cross_attention_dim), "pooled": (pooled,)}

    def arguments(self, config: UnetFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Also the image's size before and after cropping, and where it was cropped: not at all."""
        height, width = (DOWNSAMPLING * length for length in x.shape[2:])
        numbers = (height, width, 0, 0, height, width)
        # Filled on the device, since copying a list there would wait for it.
        sizes = torch.stack([torch.full((len(x),), n, dtype=x.dtype, device=x.device) for n in numbers], 1)
        more = {"text_embeds": conditioning["pooled"], "time_ids": sizes}
        return super().arguments(config, x, sigma_B, conditioning) | {"added_cond_kwargs": more}


def family() -> Family:
    """Pipelines of SDXL."""
    return family_of(Sdxl())
