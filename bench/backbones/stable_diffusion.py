"""Stable Diffusion 1 and 2: UNets that predict noise, or v, from latents. As diffusers' StableDiffusionPipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import Published
from bench.backbones.unet import UnetFamily, UnetFields
from bench.config.families import Family
from bench.sampler.levels import Levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VAE: dict[str, Any] = {
    "sample_size": 512, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True,
}  # fmt: skip
FROZEN = {"text_encoder": 123_060_480, "vae": 83_653_863}
"""Parameters of CLIP-L's text model and the VAE."""


class StableDiffusionFields(UnetFields):
    """Without the further inputs of SDXL."""

    addition_embed_type: None = None


class StableDiffusion(UnetFamily):
    """Stable Diffusion 1.5, 2.1 and pipelines of the same class."""

    name = "stable_diffusion"
    pipeline = "StableDiffusionPipeline"
    encoders: ClassVar = {"text_encoder": "CLIPTextModel"}
    tokenizers = ("tokenizer",)
    fields = StableDiffusionFields
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    published: ClassVar = {
        "hub:stable-diffusion-v1-5/stable-diffusion-v1-5": Published(
            {"sample_size": 64, "cross_attention_dim": 768}, VAE, SCHEDULER, FROZEN
        ),
    }

    def levels(self, config: StableDiffusionFields, scheduler: Any, side: int) -> Levels:
        """By the scheduler, whose steps_offset the pipeline sets to 1 whatever its file says."""
        return replace(scheduler.levels(), offset=1)

    def guidance(self, config: StableDiffusionFields, options: Mapping[str, Any]) -> float:
        """The pipeline's default."""
        return 7.5

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """CLIP's last hidden states, for 77 tokens."""
        sequence, _ = pipeline.encode_prompt(prompt, device, 1, do_classifier_free_guidance=False)
        return {"sequence": sequence}

    def prompt_shapes(self, config: StableDiffusionFields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`."""
        return {"sequence": (tokens, config.cross_attention_dim)}


def family() -> Family:
    """Pipelines of Stable Diffusion 1 and 2."""
    return family_of(StableDiffusion())
