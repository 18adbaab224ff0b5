"""The backbone of a StableDiffusion3Pipeline, given as a folder, hub id or single file."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.backbones.autoencoder_kl import KL
from bench.backbones.pipeline.source import tokenizers_hash
from bench.backbones.pipeline.text import load_text
from bench.backbones.pipeline.with_vae import WithVae
from bench.backbones.pipeline_files import config_file, index_of, require_whole
from bench.backbones.pipeline_parts import not_loaded, part_of
from bench.backbones.scheduler_files import FILE as SCHEDULER
from bench.backbones.sd3.files import (
    MAX_TEXT_TOKENS,
    PIPELINE,
    TOKENIZERS,
    check_configuration,
    fingerprint,
    folder_of,
    latent_side,
    left_out,
)
from bench.backbones.sd3.single_file import ENDING as SINGLE_FILE
from bench.backbones.sd3.single_file import has_vae, require_checkpoint, require_places
from bench.backbones.sd3.transformer import Sd3Transformer
from bench.config.compute import PLAIN, Compute
from bench.errors import BenchError, UsageError, one_line
from bench.weights.checkpoints import read_config
from bench.weights.hub import require

TEXT_ENCODERS = {
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
}
"""Folder -> class in transformers."""


class Sd3Backbone(Sd3Transformer, WithVae):
    """A StableDiffusion3Pipeline with frozen text encoders and VAE, and LoRA adapters on the transformer.

    Text encoders are loaded only when a prompt is not in the cache.
    """

    encoders = TEXT_ENCODERS

    def __init__(self, source: str, device: str, compute: Compute = PLAIN, cache: Path | None = None):
        transformer, vae = load_models(source, getattr(torch, compute.precision))
        words = tokenizers_hash(Path(folder_of(source)), TOKENIZERS)
        super().__init__("sd3", source, transformer, vae, fingerprint(source), device, compute, cache, words)
        side = latent_side(compute.resolution, transformer.config, KL.downsampling(vae.config))
        self.latent_shape = (transformer.config.in_channels, side, side)

    def latent_side(self, resolution: int) -> int:
        """Latent pixels along one side of images of so many pixels."""
        return latent_side(resolution, self.transformer.config, KL.downsampling(self.vae.config))

    def _load_text(self) -> Any:
        return load_text_encoders(self.source, self.dtype, self.transformer)

    def _encode_one(self, pipeline: Any, prompt: str, negative: bool) -> dict[str, Tensor]:
        sequence, _, pooled, _ = pipeline.encode_prompt(
            [prompt], None, None, do_classifier_free_guidance=False, device=self.device,
            max_sequence_length=self.compute.max_sequence_length or MAX_TEXT_TOKENS,
        )  # fmt: skip
        return {"sequence": sequence, "pooled": pooled}


def load_models(source: str, dtype: torch.dtype):
    """Load the transformer with type `dtype`, and the VAE always in float32.

    Raises MissingError with the cure for missing files, and UsageError for files that do not hold an SD3 model.
    """
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    home = folder_of(source)
    without = left_out(index_of(home))
    if not Path(home).is_dir():
        require(home, SCHEDULER)
        check_configuration(home, *(read_config(config_file(home, part)) for part in ("transformer", "vae")))
    elif "text_encoder_3" not in without:
        # Text encoders are loaded later, and not at all if the cache has every prompt. Check the largest one now.
        require_whole(Path(home) / "text_encoder_3")
    if source.endswith(SINGLE_FILE):
        require_checkpoint(source)
    try:
        if source.endswith(SINGLE_FILE):
            parts = {"config": home}
            told = [read_config(config_file(home, part)) for part in ("transformer", "vae")]
            with_vae = has_vae(source)
            require_places(source, told[0], told[1] if with_vae else None)
            transformer = SD3Transformer2DModel.from_single_file(source, subfolder="transformer", dtype=dtype, **parts)
            vae_source = partial(AutoencoderKL.from_single_file, source, **parts) if with_vae else None
        else:
            transformer = part_of(SD3Transformer2DModel, home, "transformer", dtype=dtype)
            vae_source = None
        vae_source = vae_source or partial(part_of, AutoencoderKL, home)
        return transformer, vae_source(subfolder="vae", dtype=torch.float32)
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers can raise almost anything on unexpected files
        if source.endswith(SINGLE_FILE):
            cause = one_line(error)
            if isinstance(error, KeyError):
                cause = f"it lacks {cause}"
            elif isinstance(error, NotImplementedError):  # from torch, for tensors left on the meta device
                cause = f"it lacks tensors that the configuration in {home} requires"
            raise UsageError(f"{source} is not an SD3 checkpoint that diffusers can read: {cause}") from error
        raise not_loaded(repr(source), home, error) from error


def load_text_encoders(source: str, dtype: torch.dtype, transformer: nn.Module) -> Any:
    """A pipeline around the transformer with tokenizers and text encoders, without T5 if its index names none."""
    home = folder_of(source)
    parts = {"transformer": transformer, **left_out(index_of(home))}
    return load_text(source, home, PIPELINE, TEXT_ENCODERS, TOKENIZERS, parts, dtype)
