"""Encoded prompts: what a backbone's network receives as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts: named tensors of any type whose first dimension is the batch.

    Each model family chooses the names, uses the same ones for all prompts, and is the only reader of the tensors.
    Indexing with a name returns its tensor; any other index selects part of the batch.
    """

    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name -> length of each prompt's tensor in its second dimension, for those that are padded with zeros to the
    longest of the batch. They are numbers of the host, so that reading them does not wait for the device."""

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"tensors of encoded prompts differ in batch size: {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @overload
    def __getitem__(self, index: str) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice | Tensor | list[int]) -> Conditioning: ...
    def __getitem__(self, index):
        if isinstance(index, str):
            return self.tensors[index]
        lengths = {}
        if self.lengths:
            rows = torch.arange(len(self))[index.cpu() if isinstance(index, torch.Tensor) else index].tolist()
            lengths = {name: tuple(of[row] for row in rows) for name, of in self.lengths.items()}
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()}, lengths)

    def repeat(self, times: int) -> Conditioning:
        """The batch repeated `times` times: [times * B, ...]."""
        repeated = {}
        for name, tensor in self.tensors.items():
            other_dimensions = [1] * (tensor.dim() - 1)
            repeated[name] = tensor.repeat(times, *other_dimensions)
        return Conditioning(repeated, {name: of * times for name, of in self.lengths.items()})

    def joined(self, **more: Tensor) -> Conditioning:
        """The batch with further tensors."""
        return Conditioning({**self.tensors, **more}, self.lengths)

    @property
    def bytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Concatenate batches. Raises ValueError unless all have the same tensor names."""
        names, padded = parts[0].tensors.keys(), parts[0].lengths.keys()
        if any(part.tensors.keys() != names or part.lengths.keys() != padded for part in parts):
            raise ValueError(f"encoded prompts have different tensors: {[sorted(part.tensors) for part in parts]}")
        tensors = {name: [part[name] for part in parts] for name in names}
        for name in padded:
            tensors[name] = _padded(tensors[name])
        lengths = {name: tuple(length for part in parts for length in part.lengths[name]) for name in padded}
        return Conditioning({name: torch.cat(own) for name, own in tensors.items()}, lengths)


def _padded(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors [B, L, ...] with zeros at the end of the second dimension, up to the longest."""
    longest = max(tensor.shape[1] for tensor in tensors)
    found = []
    for tensor in tensors:
        missing = longest - tensor.shape[1]
        rest = tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])
        found.append(torch.cat([tensor, rest], 1) if missing else tensor)
    return found
