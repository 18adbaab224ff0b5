"""Means over strata and bootstrap intervals, with explicit generators."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with a 95% percentile bootstrap interval; NaN where nothing was evaluated."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def stratified_mean(values: np.ndarray, strata: np.ndarray) -> float:
    """Unweighted mean over strata of the mean within (GenEval's overall score when strata are tags)."""
    if not len(values):
        return float("nan")
    return float(np.mean([values[strata == s].mean() for s in np.unique(strata)]))


def resampled_means(
    values_SN: np.ndarray, strata_N: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Bootstrap distribution [resamples] of the stratified mean over S seeds and N rows.

    Seeds are drawn with replacement (when there are several) and, within every stratum, rows: one draw of rows for all
    seeds, because the prompts are the same ones.
    """
    seeds, _ = values_SN.shape
    which = rng.integers(seeds, size=(resamples, seeds))
    means = np.zeros((resamples, seeds))
    names = np.unique(strata_N)
    for name in names:
        rows = np.flatnonzero(strata_N == name)
        counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples) / len(rows)
        means += counts @ values_SN[:, rows].T / len(names)
    return np.take_along_axis(means, which, 1).mean(1)


def estimate(values_SN: np.ndarray, strata_N: np.ndarray, seed: int = 0) -> Estimate:
    """Mean and interval over seeds [S] and rows [N]."""
    values_SN = np.atleast_2d(values_SN)
    if values_SN.size == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    draws = resampled_means(values_SN, strata_N, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(np.mean([stratified_mean(v, strata_N) for v in values_SN])), float(low), float(high))
