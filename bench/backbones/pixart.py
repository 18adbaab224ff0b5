"""PixArt-Sigma: a transformer that predicts noise, and cross-attends to T5's states. As diffusers'
PixArtSigmaPipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench.backbones.autoencoder_kl import UNSHIFTED
from bench.backbones.captioned import CaptionedFamily, CaptionedFields
from bench.backbones.flux import FROZEN as FROZEN_FLUX
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import Published
from bench.backbones.sdxl import VAE
from bench.backbones.stable_diffusion import FROZEN as FROZEN_SD
from bench.config.bounds import Count
from bench.config.families import Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

SCHEDULER: dict[str, Any] = {"_class_name": "DPMSolverMultistepScheduler"}
FROZEN = {"text_encoder": FROZEN_FLUX["text_encoder_2"], "vae": FROZEN_SD["vae"]}


class PixArtFields(CaptionedFields):
    """What is read here from a PixArtTransformer2DModel's configuration, with diffusers' defaults."""

    sample_size: Count = 128
    patch_size: Count = 2
    in_channels: Count = 4
    use_additional_conditions: Literal[False]
    """PixArt-alpha's larger models take the size of the image, too."""


class PixArt(CaptionedFamily):
    """PixArt-Sigma and pipelines of the same class."""

    name = "pixart_sigma"
    pipeline = "PixArtSigmaPipeline"
    network = "PixArtTransformer2DModel"
    network_before = ("Transformer2DModel",)
    encoders: ClassVar = {"text_encoder": "T5EncoderModel"}
    tokenizers = ("tokenizer",)
    fields = PixArtFields
    vae = UNSHIFTED
    diffusion = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    published: ClassVar = {
        "hub:PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": Published(
            {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
            VAE,
            SCHEDULER,
            FROZEN,
        ),
    }

    def guidance(self, config: PixArtFields, options: Mapping[str, Any]) -> float:
        """The pipeline's default."""
        return 4.5

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """T5's last hidden states of the prompt in lower case, padded, and which of them are the prompt's.

        As the pipeline without clean_caption, which depends on whether ftfy and bs4 are installed.
        """
        sequence, mask, _, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=device, max_sequence_length=tokens
        )
        return {"sequence": sequence, "mask": mask}

    def arguments(self, config: PixArtFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The noisy latents at their timesteps."""
        more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        return super().arguments(config, x, sigma_B, conditioning) | more


def family() -> Family:
    """Pipelines of PixArt-Sigma."""
    return family_of(PixArt())
