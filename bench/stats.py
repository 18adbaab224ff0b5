"""Means over strata and bootstrap intervals, with explicit generators."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A mean with a 95% percentile bootstrap interval; NaN where nothing was evaluated or one value has no interval."""

    value: float
    low: float
    high: float

    @classmethod
    def unknown(cls) -> "Estimate":
        """Nothing was measured."""
        return cls(*[float("nan")] * 3)

    def __str__(self) -> str:
        interval = f" [{self.low:.3f}, {self.high:.3f}]" if self.low == self.low else ""
        return f"{self.value:.3f}{interval}"


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
        return Estimate.unknown()
    if values_SN.size == 1:
        return Estimate(float(values_SN.item()), float("nan"), float("nan"))
    draws = resampled_means(values_SN, strata_N, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(np.mean([stratified_mean(v, strata_N) for v in values_SN])), float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """A minus B with its 95% interval and a two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p: float

    @classmethod
    def unknown(cls) -> "Difference":
        """Nothing was measured."""
        return cls(*[float("nan")] * 4)

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_difference(a_SN: np.ndarray, b_SN: np.ndarray, strata_N: np.ndarray, seed: int = 0) -> Difference:
    """Difference of two models' means, paired by seed and by row (same prompts, same initial noise).

    Shapes as in `estimate`; a model without seeds of its own (base, teacher) is one row that every seed shares.
    """
    a_SN, b_SN = np.broadcast_arrays(np.atleast_2d(a_SN), np.atleast_2d(b_SN))
    if a_SN.size == 0:
        return Difference.unknown()
    draws = resampled_means(a_SN - b_SN, strata_N, np.random.default_rng(seed))
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(np.mean([stratified_mean(v, strata_N) for v in a_SN - b_SN]))
    # Share of the bootstrap distribution on the other side of zero, twice; never below what the resamples can tell.
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    return Difference(value, float(low), float(high), float(np.clip(2 * tail, 1 / len(draws), 1)))


def joined(per_task: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (values [S, N], strata [N]) of several tasks as one set whose stratified mean is the mean over tasks."""
    kinds = {task: len(np.unique(strata)) for task, (_, strata) in per_task.items()}
    # The stratified mean weighs strata equally: scale so that every task, not every stratum, counts the same.
    scale = sum(kinds.values()) / len(kinds)
    values = [np.atleast_2d(v) * scale / kinds[task] for task, (v, _) in per_task.items()]
    names = [np.array([f"{task}/{name}" for name in strata]) for task, (_, strata) in per_task.items()]
    return np.concatenate(values, 1), np.concatenate(names)


def ratio(a_SN: np.ndarray, b_SN: np.ndarray, strata_N: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of A over mean of B, seeds and rows resampled together; NaN where the mean of B is not above 0.

    Shapes as in `paired_difference`. Resamples whose B is not above 0 count as an unbounded ratio.
    """
    a_SN, b_SN = np.broadcast_arrays(np.atleast_2d(a_SN), np.atleast_2d(b_SN))
    whole = [float(np.mean([stratified_mean(row, strata_N) for row in x])) for x in (a_SN, b_SN)]
    if not whole[1] > 0:
        return Estimate.unknown()
    a, b = (resampled_means(x, strata_N, np.random.default_rng(seed)) for x in (a_SN, b_SN))
    shares = np.divide(a, b, out=np.where(a > 0, np.inf, -np.inf), where=b > 0)
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return Estimate(whole[0] / whole[1], float(low), float(high))


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of the values (Agarwal et al., arXiv 2108.13264); NaN for none."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25, axis=None)) if np.size(values) else float("nan")


def probability_of_improvement(a_S: np.ndarray, b_S: np.ndarray, seed: int = 0) -> Estimate:
    """P(a run of A scores above a run of B), ties counting half, over seeds (arXiv 2108.13264, Eq. 3)."""
    if not (np.size(a_S) and np.size(b_S)):
        return Estimate.unknown()

    def above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        gap = a[..., :, None] - b[..., None, :]
        return ((gap > 0) + 0.5 * (gap == 0)).mean((-1, -2))

    rng = np.random.default_rng(seed)
    picks = [rng.integers(len(x), size=(RESAMPLES, len(x))) for x in (a_S, b_S)]
    low, high = np.quantile(above(a_S[picks[0]], b_S[picks[1]]), [0.025, 0.975])
    return Estimate(float(above(a_S, b_S)), float(low), float(high))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment of several p-values, in their order; NaN stays NaN and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if not np.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = list(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
