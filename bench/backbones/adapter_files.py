"""Adapters on disk: peft's folders and the LoRA files that diffusers reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.adapter_config import lora_config
from bench.backbones.pipeline_files import NETWORK_CONFIG, NETWORK_WEIGHTS, NETWORKS
from bench.errors import DamagedError, UsageError, one_line
from bench.hashing import content_hash
from bench.system.files import read_record
from bench.weights.checkpoints import refuse_stand_in, require_weights
from bench.weights.hub import CONFIG_FILE, DIFFUSERS_FILE, SAFETENSORS, WEIGHTS_FILE

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

PEFT_PREFIX = "base_model.model."
DIFFUSERS_PREFIXES = tuple(f"{name}." for name in NETWORKS)
"""Prefixes of the network's tensors in diffusers' files: those of its folder in a pipeline."""
METADATA_KEY = "lora_adapter_metadata"
"""Key under which diffusers stores the LoraConfig fields in a file's header, as JSON."""
KOHYA = ("lora_unet_", "lora_transformer_", "lora_te")
COMFY = "diffusion_model."
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HOLDERS = r"_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
WRAPPERS = re.compile(rf"^((base_model\.model|transformer|unet|module|{HOLDERS})\.)+|(?<=\.)({HOLDERS})\.")
"""Name parts that wrappers add: peft, trainers, and torch's data parallelism, compilation and checkpointing."""
OWN_NAME = re.compile(r"(\.lora_(?:[AB]|magnitude_vector))\.(?!weight$|bias$)\w+(?=\.(weight|bias)$|$)")
"""An adapter's name inside a tensor's name; peft omits it when it saves."""
SHARD = re.compile(r"-[0-9]+-of-[0-9]+\.safetensors$")
"""End of the name of a file that holds one shard of a model's tensors."""


def adapter_files(place: Path) -> tuple[Path, ...]:
    """The files of the adapter at `place` (folder or file): the two files of a peft folder, or one diffusers file.

    A folder that holds both formats is read as peft's. Raises UsageError naming what is missing.
    """
    if place.is_file() and place.suffix == SAFETENSORS and place.name != WEIGHTS_FILE:
        refuse_shards([place])
        return (place,)
    folder = place.parent if place.name == WEIGHTS_FILE else place
    config, weights, alone = (folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, DIFFUSERS_FILE))
    if weights.is_file():
        if not config.is_file():
            raise UsageError(
                f"no adapter at {folder}: {CONFIG_FILE} is missing, which gives the scale of the adapter's tensors"
            )
        return config, weights
    if alone.is_file():
        return (alone,)
    missing = WEIGHTS_FILE if config.is_file() else CONFIG_FILE
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    refuse_shards(files)
    raise UsageError(f"no adapter at {folder}: neither {missing} nor {DIFFUSERS_FILE} was found{_nearby(files)}")


def _nearby(files: list[Path]) -> str:
    """A hint for an error: adapters in subfolders, else another .safetensors file, else a pickle; may be empty."""
    # peft saves an adapter that is not called "default" in a subfolder of that name.
    names = (WEIGHTS_FILE, DIFFUSERS_FILE)
    inside = [file for file in files if any((file / name).is_file() for name in (*names, NETWORK_WEIGHTS))]
    if inside:
        return f"; give {' or '.join(map(str, inside[:3]))}"
    if any(file.name in (NETWORK_CONFIG, NETWORK_WEIGHTS) for file in files):
        return f"; it is a network's folder, which needs both {NETWORK_CONFIG} and {NETWORK_WEIGHTS}"
    for file in files:
        if file.suffix == SAFETENSORS and file.name != "checkpoint.safetensors":  # of a run
            return f"; give the file itself: {file}"
    for file in files:
        if file.suffix in PICKLES:
            return f"; {file.name} is a pickle, which is not supported"
    return ""


def refuse_shards(files: list[Path]) -> None:
    """Raise UsageError if one of the files is a shard of an adapter, which alone would be only a part of it."""
    if shard := next((file for file in files if SHARD.search(file.name)), None):
        raise UsageError(f"{shard} is one shard of an adapter; sharded adapters are not supported: save it as one file")


def read_adapter(place: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Read an adapter: peft's configuration, and tensors in float32 under peft's keys without the model prefix.

    Raises UsageError naming the file at fault or the field that is not supported, and MissingError for a Git LFS
    pointer.
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
    tensors = unwrapped(read_tensors(files[1]), told, files[1])
    return lora_config(told, str(files[0])), whole(tensors, files[1])


def read_diffusers(file: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """`read_adapter` for one file in diffusers' format, using diffusers' own conversion for SD3.

    A layer's scale comes from the configuration in the file's header, or from the layer's `.alpha` tensor; otherwise
    it is 1.
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
        raise DamagedError(f"{file} is not a LoRA file that diffusers can read: {one_line(error)}") from error
    told = own_fields(told, file) if told else {}
    tensors = unwrapped(of_transformer(tensors, file), told, file)
    alpha_keys = [key for key in tensors if key.endswith(".alpha")]
    alphas = {key: one_value(tensors.pop(key), key, file) for key in alpha_keys}
    if not any("lora_A" in key for key in tensors):
        tensors = convert_unet_state_dict_to_peft(tensors)
    up = {key: value for key, value in tensors.items() if "lora_B" in key and value.ndim > 1}
    ranks = {f"^{key}": value.shape[1] for key, value in up.items()}
    layers = sorted({key.split(".lora")[0] for key in tensors})
    strays = sorted(alphas.keys() - {f"{layer}.alpha" for layer in layers})
    if not ranks or strays:
        cause = f"{strays[0]} belongs to no layer" if strays else "it has no lora_B tensors"
        raise UsageError(f"{file} is not a LoRA file that diffusers can read: {cause}")
    if alphas and told:
        raise UsageError(
            f"{file} has both .alpha tensors and {METADATA_KEY}, which give two scales: save the adapter with only one"
        )
    if alphas:
        # diffusers would give a layer without alpha the most common alpha of the other layers. Its scale must be 1,
        # so its alpha is its rank.
        by_layer = {key.split(".lora_B")[0]: float(value.shape[1]) for key, value in up.items()}
        alphas = {f"{layer}.alpha": rank for layer, rank in by_layer.items()} | alphas
    told = told or get_peft_kwargs(ranks, alphas, tensors)
    # diffusers adapts exactly the layers that have tensors, whatever the configuration says.
    only = {"target_modules": layers, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return lora_config(told | only, str(file)), whole(tensors, file)


def unwrapped(tensors: dict[str, Tensor], told: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """The tensors under their names inside the transformer, without the prefixes of wrappers.

    Raises UsageError if two tensors then have the same name, or if a rank or alpha pattern of the configuration
    mentions a wrapper: without the prefix, the pattern would no longer match the layers that it was written for.
    """
    bare = {key: OWN_NAME.sub(r"\1", WRAPPERS.sub("", key)) for key in tensors}
    names = list(bare.values())
    if twice := next((key for key in bare if names.count(bare[key]) > 1), None):
        raise UsageError(f"{file} holds {bare[twice]} more than once, also as {twice}: save one adapter per file")
    held = next((key for key in bare if WRAPPERS.search(key.removeprefix(PEFT_PREFIX))), None)
    for pattern in _patterns(told) if held else ():
        if re.search(HOLDERS, pattern) or WRAPPERS.search(pattern.replace("\\", "").lstrip("^")):
            raise UsageError(
                f"{file} has a layer named {held}, and the pattern {pattern} of its configuration matches such names: "
                "save the adapter from the unwrapped transformer"
            )
    return {name: tensors[key] for key, name in bare.items()}


def _patterns(told: dict[str, Any]) -> list[str]:
    """The keys of a configuration's rank and alpha patterns; not yet validated, so either may be anything."""
    given = [told.get(name) for name in ("rank_pattern", "alpha_pattern")]
    return [pattern for field in given if isinstance(field, dict) for pattern in field]


def one_value(tensor: Tensor, key: str, file: Path) -> float:
    """The number in a one-element tensor. Raises UsageError if it holds none or several."""
    if tensor.numel() != 1:
        raise UsageError(f"{file}: {key} has {tensor.numel()} values; a layer has exactly one alpha")
    return float(tensor)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DamagedError if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"corrupt weights file {file}: {one_line(error)}") from error


def tensor_names(file: Path) -> list[str]:
    """The names in a safetensors file, without reading the tensors. Raises DamagedError if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"corrupt weights file {file}: {one_line(error)}") from error


def whole(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors in float32 under the names that current peft uses. Raises UsageError for quantised tensors."""
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise UsageError(f"{file}: {key} has type {value.dtype}; adapters must be in floating point")
    # Older peft saved DoRA's magnitudes without the parameter's name; some files have them with it.
    found = {}
    for key, value in tensors.items():
        name = key.removesuffix(".weight") if key.endswith("lora_magnitude_vector.weight") else key
        found[name] = value.float()
    return found


def of_transformer(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors without diffusers' prefix. Raises UsageError if some belong to a model other than the transformer."""
    prefixed = _without_prefix(tensors)
    encoders = [key for key in tensors if key.startswith("text_encoder")]
    others = encoders
    if prefixed and not encoders:  # a file without any prefix holds the transformer alone
        others = [key for key in tensors if not key.startswith(DIFFUSERS_PREFIXES)]
    if others:
        what = "text encoders, which is not supported" if encoders else "something besides the network"
        raise UsageError(f"{file} adapts {what}: {len(others)} tensors (first: {others[0]})")
    return prefixed or tensors


def own_fields(told: dict[str, Any], file: Path) -> dict[str, Any]:
    """The transformer's fields of the configuration in a file's header.

    The fields have no prefix if only a transformer was saved. Raises DamagedError unless they are a JSON object.
    """
    if not isinstance(told, dict):
        raise DamagedError(f"{file}: its {METADATA_KEY} is of type {type(told).__name__}, not a JSON object")
    return _without_prefix(told) or told


def _without_prefix(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries that have diffusers' prefix for the network, under their names without it."""
    own = [key for key in entries if key.startswith(DIFFUSERS_PREFIXES)]
    return {key.partition(".")[2]: entries[key] for key in own}


def refuse_foreign(names: list[str], file: Path) -> None:
    """Raise UsageError for formats that diffusers does not convert for SD3 or converts only in part."""
    for key in names:
        if key.startswith(PEFT_PREFIX):
            raise UsageError(
                f"{file} holds tensors in peft's format ({key}), but {CONFIG_FILE} is missing, which gives their "
                f"scale: give a folder that holds both, with the tensors as {WEIGHTS_FILE}"
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
            raise UsageError(f"{file} holds {key}: only LoRA, and DoRA in peft's format, are supported")


def adapter_hash(place: Path) -> str:
    """Content hash of an adapter's files. Raises UsageError if one is missing."""
    return content_hash(adapter_files(place))
