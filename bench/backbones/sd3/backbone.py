"""Any StableDiffusion3Pipeline (folder, hub id or single file) behind the common contract."""

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
    """StableDiffusion3Pipeline: frozen text encoders and VAE, LoRA on the transformer.

    Text encoders are loaded when a prompt turns up that is not in the cache.
    """

    def __init__(self, source: str, device: str, compute: Compute = PLAIN, cache: Path | None = None):
        transformer, vae = load_models(source, getattr(torch, compute.precision))
        identity = fingerprint(source)
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
        encoders = [encoder for name in TEXT_ENCODERS if (encoder := getattr(self._text, name)) is not None]
        for encoder in encoders:
            encoder.to(self.device)
        for prompt in prompts:
            sequence, _, pooled, _ = self._text.encode_prompt(
                [prompt],
                None, None,  # type: ignore[arg-type]  # the same prompt, which diffusers' types do not say
                do_classifier_free_guidance=False, device=self.device,
                max_sequence_length=self.compute.max_sequence_length or MAX_TEXT_TOKENS,
            )  # fmt: skip
            yield Conditioning({"sequence": sequence, "pooled": pooled})
        if self.compute.offload_text_encoders:
            for encoder in encoders:
                encoder.to("cpu")

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """By the mean of the VAE's distribution: the same latents whatever was drawn before."""
        config, pixels = self.vae.config, 2 * images_BCHW.to(self.vae.dtype) - 1
        latents = self.vae.encode(pixels, return_dict=False)[0].mode()
        return ((latents - (config.shift_factor or 0)) * config.scaling_factor).float()

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        config = self.vae.config
        latents = latents_BCHW.to(self.vae.dtype) / config.scaling_factor + (config.shift_factor or 0)
        return (self.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)


def load_models(source: str, dtype: torch.dtype):
    """The transformer at a precision and the VAE, which is always float32. Raises MissingError with the cure."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel

    home = folder_of(source)
    without = left_out(index_of(home))
    if not Path(home).is_dir():
        require(home, SCHEDULER)
    elif "text_encoder_3" not in without:  # now, before a cache of prompts that were encoded without it stands in
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
    except Exception as error:  # diffusers raises whatever odd files lead it to
        if source.endswith(SINGLE_FILE):
            cause = one_line(error)
            if isinstance(error, KeyError):
                cause = f"it lacks {cause}"
            elif isinstance(error, NotImplementedError):  # torch's, of tensors that nothing filled
                cause = f"it lacks tensors that the configuration in {home} asks for"
            raise UsageError(f"{source} is no SD3 checkpoint that diffusers reads: {cause}") from error
        raise not_loaded(repr(source), home, error) from error


def load_text_encoders(source: str, dtype: torch.dtype, transformer):
    """A pipeline around the transformer with tokenizers and text encoders, without T5 where its index names none.

    Raises MissingError.
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
    """Raise MissingError where a tokenizer of a pipeline's folder, that is not left out, is not whole.

    Raises DamagedError where its index says null of one that a text encoder needs.
    """
    index = index_of(str(home))
    for name in TOKENIZERS:
        if name not in without:
            if says_null(index, name):
                raise DamagedError(f"{home / 'model_index.json'} names no {name}, which one of its text encoders needs")
            folder = home / name
            if folder.is_dir():
                refuse_stand_ins(folder, name)
            require_tokenizer(folder)
