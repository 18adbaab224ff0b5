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
HOLDERS = r"_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
WRAPPERS = re.compile(rf"^((base_model\.model|transformer|module|{HOLDERS})\.)+|(?<=\.)({HOLDERS})\.")
"""What peft, trainers, torch's data parallelism, compilation and checkpointing put into names of what they hold."""
OWN_NAME = re.compile(r"(\.lora_(?:[AB]|magnitude_vector))\.(?!weight$|bias$)\w+(?=\.(weight|bias)$|$)")
"""An adapter's own name, which peft leaves out of what it saves."""
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
    # as peft saves an adapter with a name of its own
    inside = [file for file in files if (file / WEIGHTS_FILE).is_file() or (file / DIFFUSERS_FILE).is_file()]
    other = f"; name {' or '.join(map(str, inside[:3]))}" if inside else ""
    other = other or next((f"; name the file itself: {file}" for file in files if file.suffix == SAFETENSORS), "")
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
    tensors = unwrapped(read_tensors(files[1]), told, files[1])
    return lora_config(told, str(files[0])), whole(tensors, files[1])


def read_diffusers(file: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """As `read_adapter`, of one file in diffusers' format, by diffusers' own conversion for SD3.

    A layer's scale is that of the configuration in the file's header, or of its own `.alpha` tensor, or else 1.
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
    told = own_fields(told, file) if told else {}
    tensors = unwrapped(of_transformer(tensors, file), told, file)
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
    if alphas:  # diffusers would give every layer without one the commonest of the others'
        own = {key.removeprefix("^").split(".lora_B")[0]: float(rank) for key, rank in ranks.items()}
        alphas = {f"{layer}.alpha": rank for layer, rank in own.items()} | alphas
    told = told or get_peft_kwargs(ranks, alphas, tensors)
    # diffusers adapts the layers that there are tensors for, whatever the configuration says of them
    only = {"target_modules": layers, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return lora_config(told | only, str(file)), whole(tensors, file)


def unwrapped(tensors: dict[str, Tensor], told: dict[str, Any], file: Path) -> dict[str, Tensor]:
    """Tensors named by their place in the transformer, whatever held it when they were saved.

    Raises UsageError if two have one name then, and for a configuration whose patterns name what is left out here: they
    would no longer find the layers that they were written for.
    """
    bare = {key: OWN_NAME.sub(r"\1", WRAPPERS.sub("", key)) for key in tensors}
    names = list(bare.values())
    if twice := next((key for key in bare if names.count(bare[key]) > 1), None):
        raise UsageError(f"{file} holds {bare[twice]} more than once, also as {twice}: save one adapter a file")
    held = next((key for key in bare if WRAPPERS.search(key.removeprefix(PEFT_PREFIX))), None)
    fields = [told.get(name) for name in ("rank_pattern", "alpha_pattern") if held]
    for pattern in (word for field in fields if isinstance(field, dict) for word in field):
        if re.search(HOLDERS, pattern) or WRAPPERS.search(pattern.replace("\\", "").lstrip("^")):
            raise UsageError(
                f"{file} names a layer {held}, and its configuration has the pattern {pattern} for such names: save "
                "the adapter from the transformer itself"
            )
    return {name: tensors[key] for key, name in bare.items()}


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
