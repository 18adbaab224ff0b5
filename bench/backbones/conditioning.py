"""Encoded prompts, the form in which text reaches a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor



@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: `sequence` [B, T, D] and `pooled` [B, P]."""

    sequence: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index) -> Conditioning:
        return Conditioning(self.sequence[index], self.pooled[index])

    def repeat(self, times: int) -> Conditioning:
        """The whole batch, `times` times over: [times * B, ...]."""
        return Conditioning(self.sequence.repeat(times, 1, 1), self.pooled.repeat(times, 1))

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return self.sequence.nbytes + self.pooled.nbytes

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        return Conditioning(torch.cat([p.sequence for p in parts]), torch.cat([p.pooled for p in parts]))
