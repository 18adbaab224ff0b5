"""Any StableDiffusion3Pipeline (folder, hub id or single file) behind the common contract."""

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from bench.backbones.adapters import TARGETS
from bench.backbones.conditioning import Conditioning
from bench.backbones.flow_scheduler import FILE as SCHEDULER
from bench.backbones.flow_scheduler import shift_in
from bench.backbones.pipeline_files import require_whole, variant_of, weight_files
from bench.backbones.sd3_transformer import Sd3Transformer
from bench.backbones.single_file import ENDING as SINGLE_FILE
from bench.backbones.single_file import has_vae, require_checkpoint, require_places
from bench.backbones.size import Size
from bench.config.bounds import Positive
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.errors import BenchError, DamagedError, MissingError, UsageError, one_line
from bench.hashing import content_hash, sampled_hash, text_hash
from bench.system.devices import best_device
from bench.weights.checkpoints import (
    read_config,
    refuse_quantised,
    refuse_stand_ins,
    require_model,
    require_tokenizer,
)
from bench.weights.frozen import whole
from bench.weights.hub import PREFIX, require

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

DEFAULT = "hub:stabilityai/stable-diffusion-3.5-medium"
CLIP_TOKENS, MAX_TEXT_TOKENS = 77, 128
"""Of a prompt: CLIP's, and T5's where compute.max_sequence_length does not say."""
PUBLISHED_SHIFT = 3.0
"""Timestep shift of Stability's SD3 and SD3.5 pipelines; a pipeline's own file goes before it."""
MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": list(range(13)),
}  # fmt: skip
"""The transformer's configuration of SD3.5-Medium."""
VAE = {
    "sample_size": 1024, "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
"""The VAE's configuration of SD3.5."""
FROZEN_PARAMETERS = {
    "text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656, "vae": 83_819_683,
}  # fmt: skip
"""Of CLIP-L, CLIP-G, T5-XXL's encoder and the VAE in SD3.5."""
PIPELINE = "StableDiffusion3Pipeline"
Side = Annotated[int, Field(gt=0, le=100_000)]
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PUBLISHED: dict[str, Any] = {
    "resolution": 512, "precision": "bfloat16", "gradient_checkpointing": True, "batch": 64, "decode": "sliced",
}  # fmt: skip
"""Compute settings of a model of published size where nobody says: post-training is published at 512 pixels, in half
precision, and by far most of a 24 GB card would go into activations."""
LARGE = 5 * 10**8
"""Parameters from which on a transformer is of published size; the smallest that is published has 2 billion."""
CURE = "give a local folder in diffusers' format, or make the hub reachable, accept the model's licence and log in"


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
        side = latent_side(compute.resolution, transformer.config, 2 ** (len(vae.config.block_out_channels) - 1))
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
            yield Conditioning(sequence, pooled)
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


def latent_side(resolution: int | None, config, downsampling: int) -> int:
    """Latent pixels a side. Raises UsageError for a resolution that the model cannot draw."""
    unit = downsampling * config.patch_size
    if resolution is None:
        side, patch = config.sample_size, config.patch_size
        if side % patch or side // patch > config.pos_embed_max_size:
            largest = patch * config.pos_embed_max_size
            raise UsageError(
                f"the transformer's sample_size {side} is no multiple of its patch_size {patch} up to {largest}, by "
                "its pos_embed_max_size: correct its config.json"
            )
        return side
    if resolution % unit or resolution // unit > config.pos_embed_max_size:
        largest = unit * config.pos_embed_max_size
        raise UsageError(f"compute.resolution {resolution} is no multiple of {unit} up to {largest}")
    return resolution // downsampling


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


def not_loaded(what: str, home: str, error: Exception) -> BenchError:
    """The error of a pipeline that a library cannot load; of a local folder no licence is to be accepted."""
    said = f"cannot load {what}: {one_line(error)}"
    if Path(home).is_dir():
        return (MissingError if isinstance(error, OSError) else DamagedError)(said)
    return MissingError(f"{said}; {CURE}")


def part_of(model_class, home: str, subfolder: str, **how):
    """A model of a pipeline, from its plain files or, where there are no others, from a variant's."""
    folder = Path(home) / subfolder
    if Path(home).is_dir():
        require_whole(folder)
        refuse_stand_ins(folder, subfolder)
    what = f"weights file of the {subfolder}"
    for path in weight_files(folder):
        require_model(path, what)
    fetched = config_file(home, subfolder)
    refuse_quantised(read_config(fetched), fetched)
    how |= {"variant": variant_of(folder), "use_safetensors": True, "output_loading_info": True}
    try:
        with unremarked():
            loaded = model_class.from_pretrained(home, subfolder=subfolder, **how)
        for path in weight_files(fetched.parent):  # those of the hub are here now
            require_model(path, what)
        return whole(loaded, folder)
    except ValueError as error:
        if other := re.search(r"(\S+) expected shape ", one_line(error)):  # diffusers', and then its advice
            said = f"holds in another shape than its config.json says the tensor {other[1]}"
            raise DamagedError(f"{folder} {said}") from error
        raise


@contextmanager
def unremarked() -> Iterator[None]:
    """The libraries' own remarks on tensors are left out: they advise to ignore what `whole` refuses."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in before:
            library.set_verbosity(level)


def config_file(home: str, subfolder: str) -> Path:
    """The config.json of a pipeline's model, fetched where it is the hub's."""
    name = f"{subfolder}/config.json"
    return Path(home) / name if Path(home).is_dir() else require(home, name)


def index_of(home: str) -> dict:
    """What a pipeline's model_index.json says, fetched where it is the hub's."""
    name = "model_index.json"
    return read_config(Path(home) / name if Path(home).is_dir() else require(home, name))


def left_out(index: dict) -> dict[str, None]:
    """T5 and its tokenizer, where a pipeline's index says null of it: diffusers then draws without."""
    return {"text_encoder_3": None, "tokenizer_3": None} if says_null(index, "text_encoder_3") else {}


def says_null(index: dict, name: str) -> bool:
    return name in index and index[name] in (None, [None, None])


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


def tokenizers_hash(home: Path) -> str:
    """Of the tokenizers' files that `fingerprint` leaves out, in a folder's name; empty where there are none."""
    files = {name: [p for p in (home / name).glob("*") if p.suffix in (".txt", ".model")] for name in TOKENIZERS}
    return f"-{text_hash({k: content_hash(v) for k, v in files.items()})}" if any(files.values()) else ""


def folder_of(source: str) -> str:
    """The diffusers folder, or hub id, that has what a source lacks.

    A single file brings the transformer and perhaps the VAE; the rest comes from the folder that it lies in, as in
    Stability's repositories, or else from the default model.
    """
    if source.endswith(SINGLE_FILE):
        beside = Path(source).parent
        return str(beside) if (beside / "model_index.json").is_file() else DEFAULT.removeprefix(PREFIX)
    return source.removeprefix(PREFIX)


@cache
def fingerprint(source: str) -> str:
    """Content hash of a local pipeline's weights and configuration, read once; a hub id stands for itself."""
    if source.endswith(SINGLE_FILE):
        home = folder_of(source)
        return text_hash([sampled_hash([Path(source)]), fingerprint(home) if Path(home).is_dir() else home])
    folder = Path(source)
    if not folder.is_dir():
        return text_hash(source)
    weights = sampled_hash(p for p in folder.rglob("*") if p.suffix in (SINGLE_FILE, ".json"))
    # A pipeline's own shift was once read past: runs of one with another shift are other runs now.
    return weights if (shift := shift_of(source)) == PUBLISHED_SHIFT else text_hash([weights, shift])


def size(source: str, compute: Compute) -> Size | None:
    """Size of a local pipeline by its files' headers, or of SD3.5-Medium as published; None where nothing is known
    before it is fetched. Raises UsageError for a resolution that it cannot draw and for what is no pipeline."""
    home = Path(folder_of(source))
    if source.endswith(SINGLE_FILE):
        require_checkpoint(source)
    elif home.is_dir():
        stored_parameters(home / "transformer")  # which its configuration tells; this tells files that are no weights
    if home.is_dir():
        config, vae = configuration(home)
        parts = [part for part in FROZEN_PARAMETERS if part not in left_out(index_of(str(home)))]
        frozen = {part: stored_parameters(home / part) for part in parts if (home / part).is_dir()}
    elif source == DEFAULT:
        config, frozen, vae = MEDIUM, FROZEN_PARAMETERS, VAE
    else:
        return None
    side = latent_side(compute.resolution, SimpleNamespace(**config), downsampling_of(vae))
    tokens = CLIP_TOKENS + (compute.max_sequence_length or MAX_TEXT_TOKENS)
    return Size(config, side, tokens, frozen, vae)


def configuration(home: Path) -> tuple[dict, dict]:
    """The configurations of the transformer and the VAE in a pipeline's folder.

    Raises UsageError for a folder that is no SD3 pipeline, naming the pipeline that it is.
    """
    index = read_config(home / "model_index.json")
    if (kind := index.get("_class_name")) != PIPELINE:
        raise UsageError(f"{home} holds a {kind}; pipelines of the class {PIPELINE} alone are implemented")
    try:
        config, vae = (read_config(home / part / "config.json") for part in ("transformer", "vae"))
    except OSError as error:
        raise UsageError(f"{home} is no whole SD3 pipeline: {one_line(error)}") from error
    for part, said, kind in (("transformer", config, TransformerFields), ("vae", vae, VaeFields)):
        try:
            kind.model_validate(said)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field, found = first["loc"][0], repr(first["input"])[:40]
            is_what = "is missing" if first["type"] == "missing" else f"is {found}: {first['msg']}"
            raise UsageError(f"{home / part / 'config.json'}: {field} {is_what}") from error
    return config, vae


class TransformerFields(BaseModel):
    """What is read of a transformer's config.json; diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    sample_size: Side
    patch_size: Side
    in_channels: Side
    pos_embed_max_size: Side
    num_layers: Side = 18
    attention_head_dim: Side = 64
    num_attention_heads: Side = 18


class VaeFields(BaseModel):
    """What is read of a VAE's config.json; older ones shift nothing."""

    model_config = ConfigDict(strict=True)
    block_out_channels: Annotated[list[Side], Field(min_length=1)]
    scaling_factor: Positive = 1.0
    shift_factor: Annotated[float, Field(allow_inf_nan=False)] | None = None


def downsampling_of(vae: dict) -> int:
    """How many pixels a side of a latent pixel stands for, by a VAE's configuration."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def stored_parameters(folder: Path) -> int:
    """Numbers in the files that are loaded from a model's folder; only their headers are read."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in weight_files(folder):
        require_model(path, f"weights file of the {folder.name}")
        with safe_open(path, "pt") as file:
            total += sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return total


def scheduler_file(source: str) -> Path | None:
    """A pipeline's scheduler_config.json, if it is on this machine: in the folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    home = folder_of(source)
    if Path(home).is_dir():
        return Path(home) / SCHEDULER
    found = try_to_load_from_cache(home, SCHEDULER) if home.count("/") == 1 else None
    return Path(found) if isinstance(found, str) else None


def shift_of(source: str) -> float:
    """The timestep shift of a pipeline's scheduler; as published where its file is not fetched yet.

    Raises UsageError for a scheduler that is not followed.
    """
    path = scheduler_file(source)
    return shift_in(path) if path else PUBLISHED_SHIFT


def own(source: str) -> dict[str, dict]:
    """What a pipeline does where nobody says; the resolution of one that is not fetched yet is not known."""
    compute = {"max_sequence_length": MAX_TEXT_TOKENS}
    home = Path(folder_of(source))
    if home.is_dir() or source == DEFAULT:
        config, vae = configuration(home) if home.is_dir() else (MEDIUM, VAE)
        compute["resolution"] = config["sample_size"] * downsampling_of(vae)
    return {"compute": compute, "lora": {"targets": TARGETS}}


def load(source: str, shift: float, device: str, compute: Compute = PLAIN, cache: Path | None = None) -> Sd3Backbone:
    """The backbone of a descriptor that gave `shift`. Raises UsageError if the scheduler, now fetched, has another."""
    backbone = Sd3Backbone(source, device, compute, cache)
    if (now := shift_of(source)) != shift:
        raise UsageError(f"the scheduler of {source}, fetched just now, has shift {now:g}: give the same command again")
    return backbone


def published(source: str) -> dict | None:
    """The compute settings of a pipeline that is of published size; None for a smaller one.

    Asked for by every command: counted by the configuration, without building the model. A layer has 36 numbers for
    each pair of channels: 8 in attention and 16 in the two networks of image and text, 12 in their modulation.
    """
    home = Path(folder_of(source))
    if not home.is_dir():
        return PUBLISHED
    config, vae = configuration(home)
    told = TransformerFields.model_validate(config)
    if 36 * told.num_layers * (told.num_attention_heads * told.attention_head_dim) ** 2 < LARGE:
        return None
    larger = told.sample_size * downsampling_of(vae) > PUBLISHED["resolution"]
    return {name: value for name, value in PUBLISHED.items() if larger or name != "resolution"}


def descriptor(source: str = DEFAULT) -> Descriptor:
    """SD3.5-Medium from the hub, or the pipeline at `source` (folder, single file, hub:OWNER/REPO)."""
    compute = published(source)  # first: it tells a pipeline of another class, whose scheduler is not to be changed
    shift = shift_of(source)
    return Descriptor(
        name="sd3",
        world="photo",
        shift=shift,
        load=partial(load, source, shift),
        fingerprint=partial(fingerprint, source),
        own=partial(own, source),
        size=partial(size, source),
        check=partial(size, source),
        defaults={"device": best_device(), "compute": compute, "sampler": {"guidance": 4.5}} if compute else {},
        recipes=Path(__file__).parent / "sd3_recipes" if compute else None,
    )
