"""Encoded prompts, the form in which text reaches a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: named tensors whose first dimension is the batch, of any type.

    The names are the model family's own, and the same for all its prompts; nobody but the family reads them. A name
    gives its tensor, any other index part of the batch.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"tensors of encoded prompts have no common batch: {shapes}")

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
        """The whole batch, `times` times over: [times * B, ...]."""
        return Conditioning({name: t.repeat(times, *[1] * (t.dim() - 1)) for name, t in self.tensors.items()})

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """One batch of several. Raises ValueError where they have other names than the first."""
        if any(part.tensors.keys() != parts[0].tensors.keys() for part in parts):
            raise ValueError(f"encoded prompts have different tensors: {[sorted(part.tensors) for part in parts]}")
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})
