"""Gradient noise: signal-to-noise ratio, trace of the covariance, and the sources of the noise."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bench.analysis.stats import Estimate


@dataclass(frozen=True)
class Moments:
    """Unbiased second moments of gradient estimates."""

    signal: float
    """Squared norm of the true mean gradient, without the sample's noise; can be negative if the noise is large."""
    from_states: float
    """Trace of the covariance caused by prompts and initial noise; can be negative for the same reason."""
    from_estimator: float
    """Trace of the covariance that remains with prompts and initial noise fixed."""

    @property
    def trace(self) -> float:
        """Trace of the covariance of a single estimate."""
        return self.from_states + self.from_estimator

    @property
    def snr(self) -> float:
        """Signal over trace. It does not depend on the scale of the gradient, so that methods can be compared."""
        return self.signal / self.trace if self.trace > 0 else float("inf")


@dataclass(frozen=True)
class GradientNoise:
    """Gradient noise from the inner products of M x R estimates: R at each of M states."""

    mean: Tensor
    """Mean of all estimates, [P]."""
    gram: np.ndarray
    """Inner products of the estimates, [M R, M R], ordered by state."""
    draws: int
    """Number of estimates per state, R."""
    along: np.ndarray
    """Inner product of each state's mean estimate with a reference gradient, [M]; NaN without a reference."""

    @property
    def states(self) -> int:
        """Number of states, M."""
        return len(self.gram) // self.draws

    @cached_property
    def moments(self) -> Moments:
        """Second moments over all states."""
        return self._moments(np.arange(self.states))

    @cached_property
    def snr(self) -> Estimate:
        """Signal-to-noise ratio of one estimate, with Student's interval on the jackknife over states.

        The interval is NaN with fewer than three states, or without noise.
        """
        from scipy.stats import t

        value = self.moments.snr
        states = np.arange(self.states)
        if self.states < 3 or not np.isfinite(value):
            return Estimate(value, float("nan"), float("nan"))
        left_out = np.array([self._moments(np.delete(states, i)).snr for i in states])
        error = float(np.sqrt((self.states - 1) * left_out.var()))
        half = float(t.ppf(0.975, self.states - 1)) * error
        return Estimate(value, value - half, value + half)

    def slope(self, other: "GradientNoise") -> Estimate:
        """Ratio of this mean gradient to another, both projected on their common reference; 1 if they are equal.

        States are paired, so that the noise of the reference cancels. The interval is Student's for the ratio to first
        order: with a dozen states and the heavy tails of sampled log-ratios, bootstrap intervals are too narrow.
        """
        from scipy.stats import t

        base = float(other.along.mean())
        if not base > 0:
            return Estimate.unknown()
        value = float(self.along.mean()) / base
        residual = (self.along - value * other.along).std(ddof=1) / base
        half = float(t.ppf(0.975, self.states - 1)) * float(residual) / self.states**0.5
        return Estimate(value, value - half, value + half)

    def cosine(self, reference: Tensor) -> float:
        """Cosine between the mean and a reference gradient [P]."""
        return float(torch.nn.functional.cosine_similarity(self.mean, reference, dim=0))

    def _moments(self, picked: np.ndarray) -> Moments:
        """Nested analysis of variance over the picked states.

        E[between mean square] = R from_states + from_estimator. With R = 1 the two cannot be separated, and all noise
        is attributed to the states.
        """
        r, m = self.draws, self.states
        blocks = self.gram.reshape(m, r, m, r)
        state_means = blocks.sum((1, 3)) / r**2
        sums = state_means[np.ix_(picked, picked)]  # inner products of the picked states' means
        squares = np.einsum("irir->i", blocks)[picked]  # summed squared norms of each state's estimates
        within = 0.0
        if r > 1:
            within = float(((squares - r * np.diag(sums)) / (r - 1)).mean())
        # Estimates at different states are independent: their inner products have the signal as expectation.
        pairs = len(picked) * (len(picked) - 1)
        signal = float(sums.sum() - np.trace(sums)) / pairs
        own = float(np.diag(sums).mean())  # E = signal + from_states + from_estimator / R
        return Moments(signal, own - signal - within / r, within)


def gradient_noise(groups: Iterable[list[Tensor]], reference: Tensor | None = None) -> GradientNoise:
    """Gradient noise from groups of equally many estimates, one group per state, each estimate [P].

    All estimates are kept in memory in float32. `reference` [P] is a gradient from separate states. Raises ValueError
    with fewer than two states.
    """
    vectors, draws = [], 0
    for group in groups:
        vectors += [g.float().cpu() for g in group]
        draws = len(group)
    if len(vectors) < 2 * draws or not draws:
        raise ValueError("gradient noise needs estimates at two or more states")
    stacked = torch.stack(vectors)
    gram = torch.stack([(stacked * row).double().sum(1) for row in stacked])
    inner = torch.full((len(stacked),), torch.nan)
    if reference is not None:
        inner = (stacked * reference).double().sum(1)
    along = inner.reshape(-1, draws).mean(1)
    return GradientNoise(stacked.mean(0), gram.numpy(), draws, along.numpy())
