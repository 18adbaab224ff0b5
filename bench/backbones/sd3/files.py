"""What can be read from a StableDiffusion3Pipeline's files (folder, hub id or single file) without loading a model."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.autoencoder_kl import KL
from bench.backbones.flow_scheduler import shift_in
from bench.backbones.pipeline.source import validated
from bench.backbones.pipeline_files import index_of, says_null, stored_parameters
from bench.backbones.scheduler_files import FILE as SCHEDULER
from bench.backbones.sd3.network import sd3_size
from bench.backbones.sd3.single_file import ENDING as SINGLE_FILE
from bench.backbones.sd3.single_file import require_checkpoint
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.errors import UsageError, one_line
from bench.hashing import sampled_hash, text_hash
from bench.weights.checkpoints import read_config
from bench.weights.hub import PREFIX, cached

DEFAULT = "hub:stabilityai/stable-diffusion-3.5-medium"
CLIP_TOKENS, MAX_TEXT_TOKENS = 77, 128
"""Tokens of a prompt: CLIP's, and T5's unless compute.max_sequence_length is set."""
PUBLISHED_SHIFT = 3.0
"""Timestep shift of Stability's SD3 and SD3.5 pipelines; a pipeline's own scheduler file overrides it."""
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
"""Parameter counts of CLIP-L, CLIP-G, T5-XXL's encoder and the VAE in SD3.5."""
PIPELINE = "StableDiffusion3Pipeline"
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
Side = Annotated[int, Field(gt=0, le=100_000)]


def folder_of(source: str) -> str:
    """The diffusers folder or hub id that has the pipeline's configuration and remaining parts.

    A single file holds the transformer and perhaps the VAE. The rest comes from the folder that contains the file, as
    in Stability's repositories, or else from the default model.
    """
    if source.endswith(SINGLE_FILE):
        beside = Path(source).parent
        return str(beside) if (beside / "model_index.json").is_file() else DEFAULT.removeprefix(PREFIX)
    return source.removeprefix(PREFIX)


def left_out(index: dict) -> dict[str, None]:
    """T5 and its tokenizer if a pipeline's index has null for T5, which diffusers then runs without; else nothing."""
    return {"text_encoder_3": None, "tokenizer_3": None} if says_null(index, "text_encoder_3") else {}


@cache
def fingerprint(source: str) -> str:
    """Hash of a local pipeline's weights and configuration, or of a hub id; cached, since files are large."""
    if source.endswith(SINGLE_FILE):
        home = folder_of(source)
        rest = fingerprint(home) if Path(home).is_dir() else home
        return text_hash([sampled_hash([Path(source)]), rest])
    folder = Path(source)
    if not folder.is_dir():
        return text_hash(source)
    weights = sampled_hash(p for p in folder.rglob("*") if p.suffix in (SINGLE_FILE, ".json"))
    # Early versions ignored a pipeline's own shift. Hashing every shift that differs keeps their runs apart.
    shift = shift_of(source)
    return weights if shift == PUBLISHED_SHIFT else text_hash([weights, shift])


def configuration(home: Path) -> tuple[dict, dict]:
    """The configurations of the transformer and the VAE in a pipeline's folder.

    Raises UsageError for a folder that is not an SD3 pipeline, naming the class that it holds, and for configurations
    with missing or invalid values.
    """
    index = read_config(home / "model_index.json")
    name = index.get("_class_name")
    if name != PIPELINE:
        raise UsageError(f"{home} holds a {name}; only {PIPELINE} is supported")
    try:
        config, vae = (read_config(home / part / "config.json") for part in ("transformer", "vae"))
    except OSError as error:
        raise UsageError(f"{home} is not a complete SD3 pipeline: {one_line(error)}") from error
    check_configuration(str(home), config, vae)
    return config, vae


def check_configuration(home: str, config: dict, vae: dict) -> None:
    """Raise UsageError for missing or invalid values in the configurations of the transformer and the VAE.

    `home` is the pipeline's folder or hub id, for errors.
    """
    validated(f"{home}/transformer", config, TransformerFields)
    latents, channels = validated(f"{home}/vae", vae, KL.fields).latent_channels, config["in_channels"]
    if channels != latents:
        raise UsageError(
            f"{home}: the transformer takes {channels} channels but the VAE's latents have {latents}: only models that "
            "start from text alone are supported, not inpainting or editing ones"
        )


class TransformerFields(BaseModel):
    """The fields of a transformer's config.json that are used here, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    sample_size: Side
    patch_size: Side
    in_channels: Side
    pos_embed_max_size: Side
    num_layers: Side = 18
    attention_head_dim: Side = 64
    num_attention_heads: Side = 18


def size(source: str, compute: Compute) -> Size | None:
    """Size of a local pipeline from its configuration and file headers, or of SD3.5-Medium as published.

    None for any other pipeline that has not been downloaded. Raises UsageError for a resolution that the model cannot
    generate, and for files that are not an SD3 pipeline.
    """
    home = Path(folder_of(source))
    if source.endswith(SINGLE_FILE):
        require_checkpoint(source)
    elif home.is_dir():
        # The count follows from the configuration. This call is for its errors about corrupt weight files.
        stored_parameters(home / "transformer")
    if home.is_dir():
        config, vae = configuration(home)
        parts = [part for part in FROZEN_PARAMETERS if part not in left_out(index_of(str(home)))]
        frozen = {part: stored_parameters(home / part) for part in parts if (home / part).is_dir()}
    elif source == DEFAULT:
        config, frozen, vae = MEDIUM, FROZEN_PARAMETERS, VAE
    else:
        return None
    side = latent_side(compute.resolution, SimpleNamespace(**config), KL.downsampling(vae))
    tokens = CLIP_TOKENS + (compute.max_sequence_length or MAX_TEXT_TOKENS)
    return sd3_size(config, side, tokens, frozen, vae)


def latent_side(resolution: int | None, config, downsampling: int) -> int:
    """Latent pixels along one side. Raises UsageError for a resolution that the model cannot generate.

    `resolution` is in image pixels; None means that of the transformer's configuration.
    """
    unit = downsampling * config.patch_size
    if resolution is None:
        side, patch = config.sample_size, config.patch_size
        if side % patch or side // patch > config.pos_embed_max_size:
            largest = patch * config.pos_embed_max_size
            raise UsageError(
                f"the transformer's sample_size {side} must be a multiple of its patch_size {patch} up to {largest} "
                "(from its pos_embed_max_size): correct its config.json"
            )
        return side
    if resolution % unit or resolution // unit > config.pos_embed_max_size:
        largest = unit * config.pos_embed_max_size
        raise UsageError(f"compute.resolution must be a multiple of {unit} up to {largest}, not {resolution}")
    return resolution // downsampling


def scheduler_file(source: str) -> Path | None:
    """A pipeline's scheduler_config.json in its folder or in the hub's cache; None if not yet downloaded."""
    home = folder_of(source)
    if Path(home).is_dir():
        return Path(home) / SCHEDULER
    return cached(home, SCHEDULER) if home.count("/") == 1 else None


def shift_of(source: str) -> float:
    """The timestep shift of a pipeline's scheduler, or the published one if its file is not downloaded yet.

    Raises UsageError for a scheduler that is not supported.
    """
    path = scheduler_file(source)
    return shift_in(path) if path else PUBLISHED_SHIFT
