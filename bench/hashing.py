"""Content hashes that identify runs, teachers and weights, and seeds derived from names."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 20
"""Bytes of one sample in `sampled_hash`."""
SAMPLES = 256


def content_hash(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of file names and contents as 16 hex digits, independent of the order of `paths`."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        # Weights may be larger than memory, so they are read in pieces.
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()[:16]


def sampled_hash(paths: Iterable[Path]) -> str:
    """Return a hash like `content_hash` that reads at most about 256 MiB per file.

    A large file contributes its size and about 256 samples of 1 MiB each at even distances, the first at its start. Two
    trainings differ in every tensor, so reading tens of gigabytes at every start would detect little more.
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
    """Return the SHA-256 of tensors' names and values as 16 hex digits, independent of their device."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().flatten()
        # NumPy has no bfloat16, so the values are hashed as bytes.
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def text_hash(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON as 10 hex digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that depends only on `parts`."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    # torch takes signed 64-bit seeds, so the top bit is dropped.
    return int.from_bytes(digest[:8], "big") >> 1
