"""The backbone of a StableDiffusion3Pipeline, given as a folder, hub id or single file."""

from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from bench.backbones.autoencoder_kl import downsampling_of
from bench.backbones.conditioning import Conditioning
from bench.backbones.flow_scheduler import FILE as SCHEDULER
from bench.backbones.pipeline_files import config_file, index_of, require_whole, says_null
from bench.backbones.pipeline_parts import not_loaded, part_of
from bench.backbones.sd3.files import (
    MAX_TEXT_TOKENS,
    TOKENIZERS,
    check_configuration,
    fingerprint,
    folder_of,
    latent_side,
    left_out,
    tokenizers_hash,
)
from bench.backbones.sd3.single_file import ENDING as SINGLE_FILE
from bench.backbones.sd3.single_file import has_vae, require_checkpoint, require_places
from bench.backbones.sd3.transformer import Sd3Transformer
from bench.config.compute import PLAIN, Compute
from bench.errors import BenchError, DamagedError, UsageError, one_line
from bench.weights.checkpoints import read_config, refuse_stand_ins, require_tokenizer
from bench.weights.hub import require

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Sd3Backbone(Sd3Transformer):
    """A StableDiffusion3Pipeline with frozen text encoders and VAE, and LoRA adapters on the transformer.

    Text encoders are loaded only when a prompt is not in the cache.
    """

    def __init__(self, source: str, device: str, compute: Compute = PLAIN, cache: Path | None = None):
        transformer, vae = load_models(source, getattr(torch, compute.precision))
        identity = fingerprint(source)
        # Everything that changes a prompt's encoding must be part of the name of the cache folder.
        tokens = f"-{compute.max_sequence_length}" if compute.max_sequence_length else ""
        words = tokenizers_hash(Path(folder_of(source)))
        folder = cache / f"{identity}-{compute.precision}{tokens}{words}" if cache else None
        super().__init__("sd3", transformer, identity, device, compute, folder)
        self.source = source
        self._text: StableDiffusion3Pipeline | None = None
        self.vae = vae.requires_grad_(False).eval()
        if compute.decode == "sliced":
            self.vae.enable_slicing()
        elif compute.decode == "tiled":
            self.vae.enable_tiling()
        self.to(self.device)
        side = latent_side(compute.resolution, transformer.config, downsampling_of(vae.config))
        self.latent_shape = (transformer.config.in_channels, side, side)

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        if self._text is None:
            self._text = load_text_encoders(self.source, self.dtype, self.transformer)
        found = [getattr(self._text, name) for name in TEXT_ENCODERS]
        encoders = [encoder for encoder in found if encoder is not None]
        for encoder in encoders:
            encoder.to(self.device)
        for prompt in prompts:
            sequence, _, pooled, _ = self._text.encode_prompt(
                [prompt],
                None, None,  # type: ignore[arg-type]  # None repeats the prompt, which diffusers' types do not allow
                do_classifier_free_guidance=False, device=self.device,
                max_sequence_length=self.compute.max_sequence_length or MAX_TEXT_TOKENS,
            )  # fmt: skip
            yield Conditioning({"sequence": sequence, "pooled": pooled})
        if self.compute.offload_text_encoders:
            for encoder in encoders:
                encoder.to("cpu")

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents [B, C, h, w]: the mode of the VAE's distribution, not a sample."""
        config, pixels = self.vae.config, 2 * images_BCHW.to(self.vae.dtype) - 1
        latents = self.vae.encode(pixels, return_dict=False)[0].mode()
        return ((latents - (config.shift_factor or 0)) * config.scaling_factor).float()

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W], float32 in [0, 1]."""
        config = self.vae.config
        latents = latents_BCHW.to(self.vae.dtype) / config.scaling_factor + (config.shift_factor or 0)
        images = self.vae.decode(latents, return_dict=False)[0].float()
        return (images / 2 + 0.5).clamp(0, 1)


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


def load_text_encoders(source: str, dtype: torch.dtype, transformer):
    """A pipeline around the transformer with tokenizers and text encoders, without T5 if its index names none.

    Raises MissingError for missing files, and DamagedError for files that are corrupt or do not match.
    """
    from diffusers import StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    home = folder_of(source)
    parts = {"transformer": transformer, "vae": None} | left_out(index_of(home))
    if Path(home).is_dir():
        require_tokenizers(Path(home), without=parts)
    try:
        kinds = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
        for name, kind in zip(TEXT_ENCODERS, kinds, strict=True):
            if name not in parts:
                parts[name] = part_of(kind, home, name, dtype=dtype, ignore_mismatched_sizes=True)
        pipeline = StableDiffusion3Pipeline.from_pretrained(home, dtype=dtype, **parts)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise not_loaded(f"the text encoders of {source!r}", home, error) from error
    for name in TEXT_ENCODERS:
        if module := getattr(pipeline, name):
            module.requires_grad_(False).eval()
    return pipeline


def require_tokenizers(home: Path, without: Container[str]) -> None:
    """Raise MissingError if a tokenizer in a pipeline's folder is incomplete, except for those in `without`.

    Raises DamagedError if the pipeline's index has null for a tokenizer that a text encoder needs.
    """
    index = index_of(str(home))
    for name in TOKENIZERS:
        if name in without:
            continue
        if says_null(index, name):
            raise DamagedError(f"{home / 'model_index.json'} names no {name}, which one of its text encoders needs")
        folder = home / name
        if folder.is_dir():
            refuse_stand_ins(folder, name)
        require_tokenizer(folder)
