"""Gradient noise: signal-to-noise ratio, trace of the covariance, and where the noise comes from."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientNoise:
    """What many estimates of one gradient say. All second moments are unbiased."""

    estimates: int
    mean: Tensor
    """[P]."""
    signal: float
    """Squared norm of the true mean, the sample's noise taken out; can be slightly negative when noise drowns it."""
    from_states: float
    """Trace of the covariance that prompts and initial noise cause."""
    from_estimator: float
    """Trace of the covariance that remains with prompts and initial noise fixed."""

    @property
    def trace(self) -> float:
        """Trace of the covariance of a single estimate."""
        return self.from_states + self.from_estimator

    @property
    def snr(self) -> float:
        """Signal over trace: independent of the gradient's scale, so methods with different reductions compare."""
        return self.signal / self.trace if self.trace else float("inf")

    def cosine(self, reference: Tensor) -> float:
        """Cosine of the mean to a reference gradient."""
        return float(torch.nn.functional.cosine_similarity(self.mean, reference, dim=0))


def gradient_noise(groups: Iterable[list[Tensor]]) -> GradientNoise:
    """Nested analysis of variance over groups (one per state) of equally many estimates; holds two vectors at a time.

    With M groups of R: E[between mean square] = R from_states + from_estimator; for R = 1 the two cannot be told
    apart and all noise is counted as from states.
    """
    total = None
    count = repeats = 0
    squares = group_squares = 0.0
    for group in groups:
        summed = torch.stack(group).double().sum(0)
        squares += sum(float(g.double() @ g.double()) for g in group)
        group_squares += float(summed @ summed) / len(group)
        total = summed if total is None else total + summed
        count, repeats = count + 1, len(group)
    if total is None or count < 2:
        raise ValueError("gradient noise needs estimates at two states or more")
    n = count * repeats
    grand = float(total @ total) / n
    between = (group_squares - grand) / (count - 1)
    within = (squares - group_squares) / (n - count) if repeats > 1 else 0.0
    from_states = (between - within) / repeats if repeats > 1 else between
    mean_square = grand / n
    signal = mean_square - between / n
    return GradientNoise(n, (total / n).float(), signal, max(from_states, 0.0), within)
