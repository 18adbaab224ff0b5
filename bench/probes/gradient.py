"""Gradient noise: signal-to-noise ratio, trace of the covariance, and where the noise comes from."""

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
    """Squared norm of the true mean, the sample's noise taken out; can be slightly negative when noise drowns it."""
    from_states: float
    """Trace of the covariance that prompts and initial noise cause; can be slightly negative likewise."""
    from_estimator: float
    """Trace of the covariance that remains with prompts and initial noise fixed."""

    @property
    def trace(self) -> float:
        """Trace of the covariance of a single estimate."""
        return self.from_states + self.from_estimator

    @property
    def snr(self) -> float:
        """Signal over trace: independent of the gradient's scale, so methods with different reductions compare."""
        return self.signal / self.trace if self.trace > 0 else float("inf")


@dataclass(frozen=True)
class GradientNoise:
    """Everything that inner products of M x R estimates (M states, R at each) tell."""

    mean: Tensor
    """[P]."""
    gram: np.ndarray
    """Inner products of the estimates, [M R, M R], state by state."""
    draws: int
    """R."""
    along: np.ndarray
    """Inner product of each state's mean estimate with a reference gradient, [M]; NaN without a reference."""

    @property
    def states(self) -> int:
        return len(self.gram) // self.draws

    @cached_property
    def moments(self) -> Moments:
        return self._moments(np.arange(self.states))

    @cached_property
    def snr(self) -> Estimate:
        """Signal-to-noise ratio of one estimate; the interval is Student's on the jackknife over states.

        None with fewer than three states, or where there is no noise.
        """
        from scipy.stats import t

        value, states = self.moments.snr, np.arange(self.states)
        if self.states < 3 or not np.isfinite(value):
            return Estimate(value, float("nan"), float("nan"))
        left_out = np.array([self._moments(np.delete(states, i)).snr for i in states])
        error = float(np.sqrt((self.states - 1) * left_out.var()))
        half = float(t.ppf(0.975, self.states - 1)) * error
        return Estimate(value, value - half, value + half)

    def slope(self, other: "GradientNoise") -> Estimate:
        """This mean over another's, both along their common reference: 1 where they are the same.

        States are paired; the reference's own noise is in both and cancels. The interval is Student's, of the ratio
        to first order: with a dozen states and the heavy tails of sampled log-ratios a bootstrap covers too rarely.
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
        """Cosine of the mean to a reference gradient."""
        return float(torch.nn.functional.cosine_similarity(self.mean, reference, dim=0))

    def _moments(self, picked: np.ndarray) -> Moments:
        """Nested analysis of variance over the picked states.

        E[between mean square] = R from_states + from_estimator. With R = 1 the two cannot be told apart and all noise
        is counted as from states.
        """
        r, m = self.draws, self.states
        blocks = self.gram.reshape(m, r, m, r)
        sums = (blocks.sum((1, 3)) / r**2)[np.ix_(picked, picked)]  # inner products of state means
        squares = np.einsum("irir->i", blocks)[picked]
        within = float(((squares - r * np.diag(sums)) / (r - 1)).mean()) if r > 1 else 0.0
        pairs = len(picked) * (len(picked) - 1)
        signal = float(sums.sum() - np.trace(sums)) / pairs
        own = float(np.diag(sums).mean())  # E = signal + from_states + from_estimator / R
        return Moments(signal, own - signal - within / r, within)


def gradient_noise(groups: Iterable[list[Tensor]], reference: Tensor | None = None) -> GradientNoise:
    """Moments of groups (one per state) of equally many estimates, each [P]; keeps them all in float32.

    `reference` [P] is a gradient from states of its own.
    """
    vectors, draws = [], 0
    for group in groups:
        vectors += [g.float().cpu() for g in group]
        draws = len(group)
    if len(vectors) < 2 * draws or not draws:
        raise ValueError("gradient noise needs estimates at two states or more")
    stacked = torch.stack(vectors)
    gram = torch.stack([(stacked * row).double().sum(1) for row in stacked])
    inner = torch.full((len(stacked),), torch.nan) if reference is None else (stacked * reference).double().sum(1)
    along = inner.reshape(-1, draws).mean(1)
    return GradientNoise(stacked.mean(0), gram.numpy(), draws, along.numpy())
