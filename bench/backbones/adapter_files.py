"""Adapters on disk: peft's folders and the LoRA files that diffusers reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.adapter_config import lora_config
from bench.errors import DamagedError, UsageError, one_line
from bench.hashing import content_hash
from bench.system.files import read_record
from bench.weights.checkpoints import refuse_stand_in, require_weights
from bench.weights.hub import CONFIG_FILE, DIFFUSERS_FILE, SAFETENSORS, WEIGHTS_FILE

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps the fields of LoraConfig in a file's header, as JSON."""
KOHYA = ("lora_unet_", "lora_transformer_", "lora_te")
COMFY = "diffusion_model."
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
SHARD = re.compile(r"-[0-9]+-of-[0-9]+\.safetensors$")
"""The end of a file's name that holds a part of a model's tensors."""


def adapter_files(place: Path) -> tuple[Path, ...]:
    """The files that an adapter is made of: a peft folder's two, or the one of diffusers' format.

    peft's go first where a folder holds both. Raises UsageError naming what is missing.
    """
    if place.is_file() and place.suffix == SAFETENSORS and place.name != WEIGHTS_FILE:
        refuse_shards([place])
        return (place,)
    folder = place.parent if place.name == WEIGHTS_FILE else place
    config, weights, alone = (folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, DIFFUSERS_FILE))
    if weights.is_file():
        if not config.is_file():
            raise UsageError(f"no adapter at {folder}: {CONFIG_FILE} is missing, which says how strong its tensors are")
        return config, weights
    if alone.is_file():
        return (alone,)
    missing = WEIGHTS_FILE if config.is_file() else CONFIG_FILE
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    refuse_shards(files)
    other = next((f"; name the file itself: {file}" for file in files if file.suffix == SAFETENSORS), "")
    pickle = next((f"; {file.name} is a pickle, which is not read" for file in files if file.suffix in PICKLES), "")
    raise UsageError(f"no adapter at {folder}: {missing} is missing, and {DIFFUSERS_FILE} too{other or pickle}")


def refuse_shards(files: list[Path]) -> None:
    """Raise UsageError if an adapter is spread over several files, of which one alone would be a part of it."""
    if shard := next((file for file in files if SHARD.search(file.name)), None):
        raise UsageError(f"{shard} is a part of an adapter in several files, which are not read: save it as one file")


def read_adapter(place: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """peft's configuration of an adapter and its tensors in float32, keyed as peft keys them without a model prefix.

    Raises UsageError with the file at fault, or the field that cannot be carried out, MissingError for the Git-LFS
    pointer to a file.
    """
    files = adapter_files(place)
    require_weights(files[-1], "adapter")
    if len(files) == 1:
        return read_diffusers(files[0])
    refuse_stand_in(files[0], "LoRA configuration")
    try:
        told = read_record(files[0])
    except DamagedError as error:
        raise DamagedError(f"{files[0]} is not a LoRA configuration: {one_line(error)}") from error
    tensors = {key.removeprefix(PEFT_PREFIX): value for key, value in read_tensors(files[1]).items()}
    return lora_config(told, str(files[0])), whole(tensors, files[1])


def read_diffusers(file: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """As `read_adapter`, of one file in diffusers' format, by diffusers' own conversion for SD3.

    A layer's scale is that of the configuration in the file's header, or of its `.alpha` tensors, or else 1.
    """
    refuse_foreign(tensor_names(file), file)
    from diffusers import StableDiffusion3Pipeline
    from diffusers.utils import convert_unet_state_dict_to_peft, get_peft_kwargs

    try:
        tensors, told = StableDiffusion3Pipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True,
            return_lora_metadata=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise DamagedError(f"{file} is no LoRA file that diffusers reads: {one_line(error)}") from error
    tensors = of_transformer(tensors, file)
    alphas = {key: one_value(tensors.pop(key), key, file) for key in [key for key in tensors if key.endswith(".alpha")]}
    if not any("lora_A" in key for key in tensors):
        tensors = convert_unet_state_dict_to_peft(tensors)
    ranks = {f"^{key}": value.shape[1] for key, value in tensors.items() if "lora_B" in key and value.ndim > 1}
    layers = sorted({key.split(".lora")[0] for key in tensors})
    strays = sorted(alphas.keys() - {f"{layer}.alpha" for layer in layers})
    if not ranks or strays:
        raise UsageError(f"{file} is no LoRA file that diffusers reads: {strays[0] if strays else 'no lora_B'} alone")
    if alphas and told:
        raise UsageError(f"{file} has both .alpha tensors and {METADATA_KEY}: which scale is meant is not known")
    told = own_fields(told, file) if told else get_peft_kwargs(ranks, alphas, tensors)
    # diffusers adapts the layers that there are tensors for, whatever the configuration says of them
    only = {"target_modules": layers, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return lora_config(told | only, str(file)), whole(tensors, file)


def one_value(tensor: Tensor, key: str, file: Path) -> float:
    """The number that a tensor holds. Raises UsageError if it holds none or several."""
    if tensor.numel() != 1:
        raise UsageError(f"{file}: {key} has {tensor.numel()} values; a layer has one alpha")
    return float(tensor)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DamagedError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"corrupt weights file {file}: {one_line(error)}") from error


def tensor_names(file: Path) -> list[str]:
    """The names in a safetensors file; its tensors are not read. Raises DamagedError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"corrupt weights file {file}: {one_line(error)}") from error


def whole(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Tensors in float32 under the names that peft gives them today. Raises UsageError for quantised ones."""
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise UsageError(f"{file}: {key} holds {value.dtype}, not real numbers")
    # DoRA's magnitudes were once named without, and in some files are named with, the parameter's own name
    old = "lora_magnitude_vector.weight"
    return {key.removesuffix(".weight") if key.endswith(old) else key: v.float() for key, v in tensors.items()}


def of_transformer(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Tensors without the prefix that diffusers gives them. Raises UsageError if some are of another model."""
    prefixed = {key.removeprefix(DIFFUSERS_PREFIX): v for key, v in tensors.items() if key.startswith(DIFFUSERS_PREFIX)}
    encoders = [key for key in tensors if key.startswith("text_encoder")]
    others = encoders or ([key for key in tensors if not key.startswith(DIFFUSERS_PREFIX)] if prefixed else [])
    if others:
        what = "text encoders, which are not adapted here" if encoders else "something besides the transformer"
        raise UsageError(f"{file} adapts {what}: {len(others)} of its tensors, the first is {others[0]}")
    return prefixed or tensors


def own_fields(told: dict[str, Any], file: Path) -> dict[str, Any]:
    """The transformer's fields of a header's configuration; unprefixed where only a transformer was saved."""
    if not isinstance(told, dict):
        raise DamagedError(f"{file}: its {METADATA_KEY} is {type(told).__name__}, not a JSON object")
    prefixed = {k.removeprefix(DIFFUSERS_PREFIX): v for k, v in told.items() if k.startswith(DIFFUSERS_PREFIX)}
    return prefixed or told


def refuse_foreign(names: list[str], file: Path) -> None:
    """Raise UsageError for formats that diffusers does not convert for SD3, or of which it would drop a part."""
    for key in names:
        if key.startswith(PEFT_PREFIX):
            raise UsageError(
                f"{file} holds tensors as peft saves them ({key}), and {CONFIG_FILE} is missing, which says how strong "
                f"they are: name the folder that has both, the tensors as {WEIGHTS_FILE}"
            )
        if key.startswith(COMFY):
            raise UsageError(
                f"{file} is in ComfyUI's format (the prefix of {key}), which diffusers does not convert for SD3: save "
                "it in diffusers' or peft's format"
            )
        if key.startswith(KOHYA) or ".lora_down." in key:
            raise UsageError(
                f"{file} is in Kohya's format ({key}), which diffusers does not convert for SD3: save it in diffusers' "
                "or peft's format"
            )
        if ".lokr_" in key or ".hada_" in key or "dora_scale" in key:
            raise UsageError(f"{file} holds {key}: only LoRA, and DoRA as peft saves it, is taken")


def adapter_hash(place: Path) -> str:
    """Content hash of the files that an adapter is made of. Raises UsageError if one is missing."""
    return content_hash(adapter_files(place))
