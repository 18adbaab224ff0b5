"""FLUX.1: networks that see a latent as packed 2 x 2 patches, and of which the guidance-distilled ones (dev) take the
guidance scale as an input. As diffusers' FluxPipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.packing import PATCH, packed, unpacked
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import PipelineFamily, Published
from bench.config.bounds import Count
from bench.config.families import Family
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

NETWORK: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
}  # fmt: skip
VAE: dict[str, Any] = {
    "sample_size": 1024, "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
FROZEN = {"text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656, "vae": 83_819_683}
"""Parameters of CLIP-L's text model, T5-XXL's encoder and the VAE."""


class FluxFields(BaseModel):
    """What is read here from a FluxTransformer2DModel's configuration, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    in_channels: Annotated[Count, Field(multiple_of=4)] = 64
    joint_attention_dim: Count = 4096
    pooled_projection_dim: Count = 768
    guidance_embeds: bool = False


class Flux(PipelineFamily):
    """FLUX.1-dev, FLUX.1-schnell and pipelines of the same class."""

    name = "flux"
    pipeline = "FluxPipeline"
    network = "FluxTransformer2DModel"
    encoders: ClassVar = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    tokenizers = ("tokenizer", "tokenizer_2")
    fields = FluxFields
    # As in Flow-GRPO's released FLUX.1 configuration (rank 64): attention and MLPs, of both kinds of blocks.
    targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    text_tokens = 128  # as Flow-GRPO trains; the pipeline defaults to 512
    published: ClassVar = {
        "hub:black-forest-labs/FLUX.1-dev": Published(
            NETWORK | {"guidance_embeds": True}, VAE, {"use_dynamic_shifting": True, "shift": 3.0}, FROZEN
        ),
        "hub:black-forest-labs/FLUX.1-schnell": Published(NETWORK, VAE, {"shift": 1.0}, FROZEN),
    }

    def latent_channels(self, config: FluxFields) -> int:
        """A token has four latent pixels."""
        return config.in_channels // PATCH**2

    def guidance(self, config: FluxFields, options: Mapping[str, Any]) -> float:
        """The pipeline's default; none for the few-step model."""
        return 3.5 if config.guidance_embeds else 1.0

    def embedded_guidance(self, config: FluxFields) -> bool:
        """In guidance-distilled models."""
        return config.guidance_embeds

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """T5's sequence and CLIP's pooled embedding."""
        sequence, pooled, _ = pipeline.encode_prompt(prompt, None, device, max_sequence_length=tokens)
        return {"sequence": sequence, "pooled": pooled}

    def prompt_shapes(self, config: FluxFields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`."""
        return {"sequence": (tokens, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    def arguments(self, config: FluxFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The packed latents. The place of an image's token is its row and column, that of a text token is 0."""
        rows, columns = (length // PATCH for length in x.shape[2:])
        places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
        places[..., 1] = torch.arange(rows, device=x.device)[:, None]
        places[..., 2] = torch.arange(columns, device=x.device)
        return {
            "hidden_states": packed(x),
            "encoder_hidden_states": conditioning["sequence"],
            "pooled_projections": conditioning["pooled"],
            "timestep": sigma_B,
            "guidance": conditioning.tensors.get("guidance"),
            "img_ids": places.view(rows * columns, 3),
            "txt_ids": torch.zeros(conditioning["sequence"].shape[1], 3, device=x.device, dtype=x.dtype),
        }

    def prediction(self, config: FluxFields, output: Tensor, x: Tensor) -> Tensor:
        """The unpacked output."""
        return unpacked(output, x)


def family() -> Family:
    """Pipelines of FLUX.1."""
    return family_of(Flux())
