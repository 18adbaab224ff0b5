"""Logged statistics of an objective with likelihood ratios, as in published trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.api.lab import Lab
from bench.sampler.distance import squared_distance
from bench.sampler.gaussian import Transition
from bench.sampler.total import Total

if TYPE_CHECKING:
    from torch import Tensor


def kl_between(new: Transition, old: Transition) -> Tensor:
    """KL [B] of a new to an old policy at the same states, as a mean over elements, without gradients."""
    # Not from the means: a mean that is first computed without gradients would stay without them.
    gap = squared_distance(new.velocity.detach(), old.velocity)
    return gap * (new.at.b / new.std) ** 2 / (2 * new.x[0].numel())


def beyond(log_ratio_B: Tensor, clip: float) -> Tensor:
    """Whether a ratio is outside 1 +- clip, [B]."""
    return (log_ratio_B.detach().exp() - 1).abs() > clip


class Ratios:
    """Running sums over one task's losses in one optimiser step.

    They stay on the device and are read once at the end, so that no piece of the loss waits for a transfer.
    """

    def __init__(self) -> None:
        self._ratio, self._outside, self._kl = Total(), Total(), Total()

    def add(self, log_ratio_B: Tensor, outside_B: Tensor, kl_B: Tensor) -> None:
        """Add log-ratios [B], exactly as the objective exponentiates them, whether each image is outside the trust
        region, [B], and the KL [B] between new and old policy, as a mean over elements."""
        self._ratio.add(log_ratio_B.detach().exp().sum())
        self._outside.add(outside_B.sum())
        self._kl.add(kl_B.sum())

    def note(self, lab: Lab, task: str, scale: float) -> None:
        """Log the means as ratio/TASK, clipped/TASK and kl_old/TASK; `scale` is one over the number of ratios.

        With several optimiser steps on the same trajectories the last step's values remain in the log. Those of the
        first would say nothing, as every ratio is 1 there.
        """
        lab.note(f"ratio/{task}", float(self._ratio) * scale)
        lab.note(f"clipped/{task}", float(self._outside) * scale)
        lab.note(f"kl_old/{task}", float(self._kl) * scale)
