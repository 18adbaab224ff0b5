"""Files of a diffusers pipeline: weights (plain or a variant such as fp16) and configurations."""

import re
from pathlib import Path

from bench.errors import DamagedError, MissingError
from bench.weights.checkpoints import read_config, require_model
from bench.weights.hub import DIFFUSERS_FILE, FILES, require

NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)"
    r"(?:\.(?P<variant>[\w.-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<older>[\w.-]+))?\.safetensors"
)
"""A weight file's name. The variant comes before a shard's number; in older releases of diffusers, after it."""


NETWORKS = ("transformer", "unet")
"""Folders of the network in a pipeline of diffusers."""
NETWORK_CONFIG, NETWORK_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
"""The files of a network that diffusers saves in one piece."""


def variants(folder: Path) -> dict[str, list[Path]]:
    """The safetensors files of one model's folder by variant; "" stands for the plain files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := NAME.fullmatch(path.name):
            found.setdefault(match["variant"] or match["older"] or "", []).append(path)
    return found


def variant_of(folder: Path) -> str | None:
    """The variant to load from one model's folder; None means the plain files, or that there are no files.

    Raises MissingError if there are several variants but no plain files, or if all weights are pickles.
    """
    found = variants(folder)
    if not found and any(folder.glob("*.bin")):
        raise MissingError(
            f"{folder} has only pickled weights (.bin), which are not supported: download or save the safetensors "
            "files (save_pretrained writes them)"
        )
    if not found or "" in found:
        return None
    if len(found) > 1:
        raise MissingError(
            f"{folder} has only the variants {', '.join(found)}: keep one of them, or download the plain files"
        )
    return next(iter(found))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files to load from one model's folder: a single file, or the existing shards of its index.

    Raises DamagedError if the index is not valid.
    """
    found = variants(folder)
    variant = "" if "" in found else next(iter(found), "")
    single, index = _names(folder, variant)
    if _reads_one(single, index):
        return [single]
    if index.is_file():
        return [path for name in _shards(index) if (path := folder / name).is_file()]
    return found.get(variant, [])


def require_whole(folder: Path) -> None:
    """Raise MissingError unless one model's local folder is complete, naming the first missing file."""
    if not folder.is_dir():
        raise MissingError(f"{folder.parent} has no folder {folder.name}: complete the download")
    variant = variant_of(folder)
    has_config = (folder / "config.json").is_file()
    lacks = _lacks(folder, variant or "") if has_config else "config.json"
    if not lacks:
        return
    held = sorted(path.name for path in folder.iterdir())
    more = f" and {len(held) - 3} more" if held[3:] else ""
    others = [name for name in variants(folder) if name and name != variant and not _lacks(folder, name)]
    cure = f", or remove the other weights to load the {others[0]} files, which are complete" if others else ""
    raise MissingError(
        f"{folder} has no {lacks}; it contains {', '.join(held[:3]) or 'nothing'}{more}: complete the download{cure}"
    )


def _lacks(folder: Path, variant: str) -> str:
    """The first missing file of a variant, by the names that the libraries look for; empty if it is complete."""
    single, index = _names(folder, variant)
    if _reads_one(single, index):
        return ""
    if index.is_file():
        return next((name for name in _shards(index) if not (folder / name).is_file()), "")
    sharded = any("-of-" in path.name for path in variants(folder).get(variant, []))
    return index.name if sharded else single.name


def _names(folder: Path, variant: str) -> tuple[Path, Path]:
    """The paths of a single weight file and of a shard index, as the libraries name them."""
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    return folder / f"{stem}{dotted}.safetensors", folder / f"{stem}.safetensors.index{dotted}.json"


def _reads_one(single: Path, index: Path) -> bool:
    """Whether the single file is read: diffusers prefers the index, transformers prefers the single file."""
    return single.is_file() and (single.name.startswith("model.") or not index.is_file())


def _shards(index: Path) -> list[str]:
    """The shard files that an index names. Raises DamagedError if the libraries could not use the index."""
    told = read_config(index)
    shards = told.get("weight_map")
    mapped = isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())
    if not mapped or not shards:
        raise DamagedError(f"{index} does not map each tensor to a file (weight_map): download it again")
    # The libraries use index["metadata"] without checking that it exists.
    if not isinstance(told.get("metadata"), dict):
        raise DamagedError(f"{index} has no metadata, which the libraries require: download it again")
    return sorted(set(shards.values()))


def config_file(home: str, subfolder: str) -> Path:
    """The config.json of one model of a pipeline, downloaded if `home` is a hub id."""
    name = f"{subfolder}/config.json"
    return Path(home) / name if Path(home).is_dir() else require(home, name)


def index_of(home: str) -> dict:
    """The content of a pipeline's model_index.json, downloaded if `home` is a hub id."""
    name = "model_index.json"
    return read_config(Path(home) / name if Path(home).is_dir() else require(home, name))


def network_folder(place: Path) -> Path | None:
    """The folder of the network in a pipeline's folder, or `place` itself if it holds one model.

    None if it holds an adapter or neither.
    """
    if any((place / name).is_file() for name in (*FILES, DIFFUSERS_FILE)):
        return None
    if (place / "model_index.json").is_file():
        index = index_of(str(place))
        return place / next((name for name in NETWORKS if name in index), NETWORKS[0])
    return place if (place / "config.json").is_file() and variants(place) else None


def says_null(index: dict, name: str) -> bool:
    """Whether a model_index.json states explicitly that the pipeline has no such part."""
    return name in index and index[name] == [None, None]


def stored_parameters(folder: Path) -> int:
    """Number of elements in the weight files that are loaded from a model's folder; reads only their headers."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in weight_files(folder):
        require_model(path, f"weights file of the {folder.name}")
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
        total += sum(prod(shape) for shape in shapes)
    return total
