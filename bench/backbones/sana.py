"""SANA: a linear transformer on latents of 32 x 32 pixels each, which cross-attends to Gemma's states. As diffusers'
SanaPipeline, which puts an instruction before every prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.backbones.autoencoder_dc import DC
from bench.backbones.captioned import CaptionedFamily, CaptionedFields
from bench.backbones.flow_scheduler import DPM
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import Published
from bench.config.bounds import Count, Positive
from bench.config.families import Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

BLOCKS = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
VAE: dict[str, Any] = {
    "encoder_block_types": BLOCKS, "decoder_block_types": BLOCKS, "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate", "scaling_factor": 0.41407,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {"shift": 3.0, "table": "dpm"}
ROUNDING = 2e-4
"""By so much may 1000 sigma lie below a whole number in float32."""
FROZEN = {"text_encoder": 2_614_341_888, "vae": 312_250_275}
"""Parameters of Gemma-2-2B without its head, and of the autoencoder."""


class SanaFields(CaptionedFields):
    """What is read here from a SanaTransformer2DModel's configuration, with diffusers' defaults."""

    sample_size: Count = 32
    patch_size: Count = 1
    in_channels: Count = 32
    caption_channels: Count = 2304
    guidance_embeds: Literal[False] = False
    """The few-step models, which take the guidance scale as an input, are another pipeline's."""
    timestep_scale: Positive = 1.0


class Sana(CaptionedFamily):
    """SANA, SANA-1.5 and pipelines of the same class."""

    name = "sana"
    pipeline = "SanaPipeline"
    network = "SanaTransformer2DModel"
    encoders: ClassVar = {"text_encoder": "Gemma2Model"}
    tokenizers = ("tokenizer",)
    fields = SanaFields
    vae = DC
    # As diffusers' training script for LoRA adapters of SANA.
    targets = ("to_q", "to_k", "to_v")
    schedulers = (DPM,)
    published: ClassVar = {
        "hub:Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": Published({}, VAE, SCHEDULER, FROZEN),
        "hub:Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": Published(
            {"qk_norm": "rms_norm_across_heads"}, VAE, SCHEDULER, FROZEN
        ),
    }

    def guidance(self, config: SanaFields, options: Mapping[str, Any]) -> float:
        """The pipeline's default."""
        return 4.5

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Gemma's last hidden states, padded, and which of them are the prompt's.

        The instruction asks for a better prompt; its states are dropped.
        """
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        return self._encoded(pipeline, prompt, tokens, device, instruction)

    def encode_negative(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Without an instruction."""
        return self._encoded(pipeline, prompt, tokens, device, None)

    def _encoded(
        self, pipeline: Any, prompt: str, tokens: int, device: torch.device, instruction: list[str] | None
    ) -> dict[str, Tensor]:
        sequence, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=device, max_sequence_length=tokens,
            complex_human_instruction=instruction,
        )  # fmt: skip
        return {"sequence": sequence, "mask": mask}

    def arguments(self, config: SanaFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The latents at timesteps of 1000, which are whole numbers as in the network's training."""
        timesteps = (1000 * sigma_B + ROUNDING).floor() * config.timestep_scale
        return super().arguments(config, x, timesteps, conditioning)


def family() -> Family:
    """Pipelines of SANA."""
    return family_of(Sana())
