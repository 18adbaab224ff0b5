"""Which weight files a diffusers folder holds: whole precision, or only a variant of it such as fp16."""

import re
from pathlib import Path

from bench.errors import MissingError

NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)"
    r"(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<older>\w+))?\.safetensors"
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
    """The safetensors files that are loaded from one model's folder."""
    found = variants(folder)
    return found.get("") or next(iter(found.values()), [])
