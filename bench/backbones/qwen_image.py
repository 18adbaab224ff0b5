"""Qwen-Image: packed latents as in FLUX.1, prompts with a mask, guidance that keeps the norm of each token, and a
schedule that ends at a given sigma. As QwenImagePipeline in diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.autoencoder_qwen import QWEN
from bench.backbones.packing import PATCH, packed, unpacked
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import PipelineFamily, Published
from bench.config.bounds import Count
from bench.config.families import Family
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

VAE: dict[str, Any] = {
    "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
        -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
        2.8251, 1.9160,
    ],
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}  # fmt: skip
FROZEN = {"text_encoder": 8_292_166_656, "vae": 126_892_531}
"""Parameters of Qwen2.5-VL-7B and the VAE."""


class QwenImageFields(BaseModel):
    """What is read here from a QwenImageTransformer2DModel's configuration, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    in_channels: Annotated[Count, Field(multiple_of=4)] = 64
    joint_attention_dim: Count = 3584
    guidance_embeds: Literal[False] = False
    """No published model takes the guidance scale as an input."""
    zero_cond_t: Literal[False] = False
    use_additional_t_cond: Literal[False] = False
    """Both are of models that edit images or draw layers."""


class QwenImage(PipelineFamily):
    """Qwen-Image and pipelines of the same class."""

    name = "qwen_image"
    pipeline = "QwenImagePipeline"
    network = "QwenImageTransformer2DModel"
    encoders: ClassVar = {"text_encoder": "Qwen2_5_VLForConditionalGeneration"}
    tokenizers = ("tokenizer",)
    fields = QwenImageFields
    vae = QWEN
    # As in Flow-Factory.
    targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    )  # fmt: skip
    padded = ("sequence", "mask")
    text_tokens = 512  # what a prompt is truncated to: shorter ones cost less
    published: ClassVar = {"hub:Qwen/Qwen-Image": Published({}, VAE, SCHEDULER, FROZEN)}

    def latent_channels(self, config: QwenImageFields) -> int:
        """A token has four latent pixels."""
        return config.in_channels // PATCH**2

    def guidance(self, config: QwenImageFields, options: Mapping[str, Any]) -> float:
        """The pipeline's default."""
        return 4.0

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The last hidden states of the language model, without those of the template before the prompt."""
        sequence, _ = pipeline.encode_prompt(prompt, device, max_sequence_length=tokens)
        return {"sequence": sequence, "mask": torch.ones(sequence.shape[:2], dtype=torch.long, device=device)}

    def prompt_shapes(self, config: QwenImageFields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`, of a prompt that is as long as it may be."""
        return {"sequence": (tokens, config.joint_attention_dim), "mask": (tokens,)}

    def arguments(
        self, config: QwenImageFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> dict[str, Any]:
        """The packed latents and their shape in frames, rows and columns."""
        count, _, height, width = x.shape
        return {
            "hidden_states": packed(x),
            "encoder_hidden_states": conditioning["sequence"],
            "encoder_hidden_states_mask": conditioning["mask"],
            "timestep": sigma_B,
            "img_shapes": [[(1, height // PATCH, width // PATCH)]] * count,
        }

    def guided(self, v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance, rescaled for each token to its norm with the prompt."""
        cond, plain = packed(v_cond), packed(super().guided(v_cond, v_uncond, guidance))
        return unpacked(plain * (cond.norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True)), v_cond)

    def prediction(self, config: QwenImageFields, output: Tensor, x: Tensor) -> Tensor:
        """The unpacked output."""
        return unpacked(output, x)


def family() -> Family:
    """Pipelines of Qwen-Image."""
    return family_of(QwenImage())
