"""Any StableDiffusion3Pipeline in diffusers' folder format (or by hub id), behind the common contract."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.backbones.descriptor import Descriptor
from bench.backbones.flow import FlowBackbone
from bench.errors import MissingError
from bench.hashing import content_hash, text_hash

DEFAULT = "stabilityai/stable-diffusion-3.5-medium"
MAX_TEXT_TOKENS = 128


class Sd3Backbone(FlowBackbone):
    """StableDiffusion3Pipeline: frozen text encoders and VAE, LoRA on the transformer."""

    def __init__(self, source: str, device: str):
        from diffusers import StableDiffusion3Pipeline

        optional = {}
        if Path(source).is_dir() and not (Path(source) / "text_encoder_3").is_dir():
            optional = {"text_encoder_3": None, "tokenizer_3": None}
        try:
            pipeline = StableDiffusion3Pipeline.from_pretrained(source, dtype=torch.float32, **optional)
        except (OSError, ValueError) as error:
            cure = "give a local folder in diffusers' format, or make the hub reachable and accept the model's licence"
            raise MissingError(f"cannot load {source!r}: {error}; {cure}") from error
        super().__init__("sd3", pipeline.transformer, fingerprint(source), device)
        self.pipeline = pipeline.to(self.device)
        side = pipeline.transformer.config.sample_size
        self.latent_shape = (pipeline.transformer.config.in_channels, side, side)
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3):
            if module is not None:
                module.requires_grad_(False).eval()

    def _encode(self, prompt: str) -> Conditioning:
        sequence, _, pooled, _ = self.pipeline.encode_prompt(
            [prompt], None, None, do_classifier_free_guidance=False, max_sequence_length=MAX_TEXT_TOKENS,
            device=self.device,
        )  # fmt: skip
        return Conditioning(sequence, pooled)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        latents = latents_BCHW.to(self.pipeline.vae.dtype) / config.scaling_factor + config.shift_factor
        return (self.pipeline.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)


def fingerprint(source: str) -> str:
    """Content hash of a local pipeline's weights and configuration; a hub id stands for itself."""
    folder = Path(source)
    if not folder.is_dir():
        return text_hash(source)
    return content_hash(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json"))


def descriptor(source: str = DEFAULT) -> Descriptor:
    """SD3.5-Medium from the hub, or the pipeline at `source`."""
    return Descriptor(
        name="sd3",
        world="photo",
        shift=3.0,
        load=partial(Sd3Backbone, source),
        fingerprint=partial(fingerprint, source),
    )
