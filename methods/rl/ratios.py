"""What published trainers log of a clipped objective: the mean ratio, and how many ratios lay beyond the clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.api.lab import Lab
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Ratios:
    """Sums over one task's losses of one optimiser step; read once at its end, so that no step waits for the device."""

    def __init__(self, clip: float):
        self.clip = clip
        self._ratio = self._beyond = torch.zeros(())

    def add(self, log_ratio_B: Tensor) -> None:
        """Take in the log-ratios of one step, as the objective exponentiates them."""
        ratio = log_ratio_B.detach().exp()
        self._ratio = self._ratio.to(ratio.device) + ratio.sum()
        self._beyond = self._beyond.to(ratio.device) + ((ratio - 1).abs() > self.clip).sum()

    def note(self, lab: Lab, task: str, scale: float) -> None:
        """Log sums times `scale`, one over how many there are, as ratio/TASK and clipped/TASK.

        Of several optimiser steps on the same trajectories the last one's stay: in the first every ratio is 1.
        """
        lab.note(f"ratio/{task}", float(self._ratio) * scale)
        lab.note(f"clipped/{task}", float(self._beyond) * scale)
