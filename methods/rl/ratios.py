"""Logged statistics of a clipped objective, as in published trainers: the mean ratio and the clipped fraction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.api.lab import Lab
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Ratios:
    """Running sums over one task's losses in one optimiser step.

    They stay on the device and are read once at the end, so that no piece of the loss waits for a transfer.
    """

    def __init__(self, clip: float):
        self.clip = clip
        self._ratio = self._beyond = torch.zeros(())

    def add(self, log_ratio_B: Tensor) -> None:
        """Add the log-ratios [B] of one sampler step, exactly as the objective exponentiates them."""
        ratio = log_ratio_B.detach().exp()
        beyond = (ratio - 1).abs() > self.clip
        self._ratio = self._ratio.to(ratio.device) + ratio.sum()
        self._beyond = self._beyond.to(ratio.device) + beyond.sum()

    def note(self, lab: Lab, task: str, scale: float) -> None:
        """Log the means as ratio/TASK and clipped/TASK; `scale` is one over the number of ratios.

        With several optimiser steps on the same trajectories the last step's values remain in the log. Those of the
        first would say nothing, as every ratio is 1 there.
        """
        lab.note(f"ratio/{task}", float(self._ratio) * scale)
        lab.note(f"clipped/{task}", float(self._beyond) * scale)
