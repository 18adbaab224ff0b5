"""Content hashes: how runs, teachers and weights are told apart."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE, SAMPLES = 1 << 20, 256


def content_hash(paths: Iterable[Path]) -> str:
    """sha256 over file names and contents, 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:  # piece by piece: weights may be larger than memory
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()[:16]


def sampled_hash(paths: Iterable[Path]) -> str:
    """As `content_hash`, but of a large file only its size, its first mebibyte and 255 more spread evenly over it.

    Two trainings differ in every tensor; reading tens of gigabytes at every start would buy little more.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(PIECE, size // SAMPLES)):
                file.seek(start)
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:16]


def tensors_hash(tensors: "dict[str, Tensor]") -> str:
    """sha256 over names and values, 16 hex digits; the device does not matter."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def text_hash(value: object) -> str:
    """sha256 of a value's canonical JSON, 10 hex digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def seed_of(*parts: object) -> int:
    """A 63-bit seed that is a pure function of its parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
