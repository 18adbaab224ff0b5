"""Encoded prompts: what a backbone's network receives as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        return Conditioning({name: tensor[index] for name, tensor in self.tensors.items()})

    def repeat(self, times: int) -> Conditioning:
        """The batch repeated `times` times: [times * B, ...]."""
        repeated = {}
        for name, tensor in self.tensors.items():
            other_dimensions = [1] * (tensor.dim() - 1)
            repeated[name] = tensor.repeat(times, *other_dimensions)
        return Conditioning(repeated)

    def joined(self, **more: Tensor) -> Conditioning:
        """The batch with further tensors."""
        return Conditioning({**self.tensors, **more})

    @property
    def bytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Concatenate batches. Raises ValueError unless all have the same tensor names."""
        names = parts[0].tensors.keys()
        if any(part.tensors.keys() != names for part in parts):
            raise ValueError(f"encoded prompts have different tensors: {[sorted(part.tensors) for part in parts]}")
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in names})
