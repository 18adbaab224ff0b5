"""What a diffusers folder holds: its weight files, of whole precision or a variant such as fp16, and configurations."""

import re
from pathlib import Path

from bench.errors import DamagedError, MissingError
from bench.weights.checkpoints import read_config, require_model
from bench.weights.hub import require

NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)"
    r"(?:\.(?P<variant>[\w.-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<older>[\w.-]+))?\.safetensors"
)
"""Of a shard the variant stands before its number, in older releases after it."""


def variants(folder: Path) -> dict[str, list[Path]]:
    """Variant -> safetensors files of one model's folder; "" is the plain one."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := NAME.fullmatch(path.name):
            found.setdefault(match["variant"] or match["older"] or "", []).append(path)
    return found


def variant_of(folder: Path) -> str | None:
    """The variant to load from one model's folder: None where the plain files are there, or where there are none.

    Raises MissingError where several variants are there and no plain one, and where weights are pickles alone.
    """
    found = variants(folder)
    if not found and any(folder.glob("*.bin")):
        raise MissingError(
            f"{folder} has pickled weights (.bin) alone, which are not loaded: fetch or save the safetensors files "
            "(save_pretrained writes them)"
        )
    if not found or "" in found:
        return None
    if len(found) > 1:
        raise MissingError(f"{folder} has only the variants {', '.join(found)}: leave one, or fetch the plain files")
    return next(iter(found))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are loaded from one model's folder: one, or those shards of its index that are there.

    Raises DamagedError for an index that cannot be followed.
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
    """Raise MissingError naming what one model's local folder lacks to be loaded, and what else it holds."""
    if not folder.is_dir():
        raise MissingError(f"{folder.parent} lacks the folder {folder.name}: complete the download")
    variant = variant_of(folder)
    if not (folder / "config.json").is_file():
        lacks = "config.json"
    elif not (lacks := _lacks(folder, variant or "")):
        return
    held = sorted(path.name for path in folder.iterdir())
    more = f" and {len(held) - 3} more" if held[3:] else ""
    others = [name for name in variants(folder) if name and name != variant and not _lacks(folder, name)]
    cure = f"; its {others[0]} files are whole: to load those, remove the others" if others else ""
    raise MissingError(
        f"{folder} lacks {lacks}; it holds {', '.join(held[:3]) or 'nothing'}{more}: complete the download{cure}"
    )


def _lacks(folder: Path, variant: str) -> str:
    """The first file that a variant lacks, by the names that the libraries look for; empty for a whole one."""
    single, index = _names(folder, variant)
    if _reads_one(single, index):
        return ""
    if index.is_file():
        return next((name for name in _shards(index) if not (folder / name).is_file()), "")
    return index.name if any("-of-" in path.name for path in variants(folder).get(variant, [])) else single.name


def _names(folder: Path, variant: str) -> tuple[Path, Path]:
    """The file that the libraries look for, and the index of its shards."""
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    dotted = f".{variant}" if variant else ""
    return folder / f"{stem}{dotted}.safetensors", folder / f"{stem}.safetensors.index{dotted}.json"


def _reads_one(single: Path, index: Path) -> bool:
    """Whether a single file is read: diffusers reads the index first, transformers the single file."""
    return single.is_file() and (single.name.startswith("model.") or not index.is_file())


def _shards(index: Path) -> list[str]:
    """The files that an index names. Raises DamagedError for an index that the libraries could not follow."""
    told = read_config(index)
    shards = told.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise DamagedError(f"{index} names no file of every tensor: download it again")
    if not isinstance(told.get("metadata"), dict):
        raise DamagedError(f"{index} lacks its metadata, without which it is not read: download it again")
    return sorted(set(shards.values()))


def config_file(home: str, subfolder: str) -> Path:
    """The config.json of a pipeline's model, fetched where it is the hub's."""
    name = f"{subfolder}/config.json"
    return Path(home) / name if Path(home).is_dir() else require(home, name)


def index_of(home: str) -> dict:
    """What a pipeline's model_index.json says, fetched where it is the hub's."""
    name = "model_index.json"
    return read_config(Path(home) / name if Path(home).is_dir() else require(home, name))


def says_null(index: dict, name: str) -> bool:
    return name in index and index[name] in (None, [None, None])


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
