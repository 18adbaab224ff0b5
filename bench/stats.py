"""Means over strata and their intervals: bootstrap over prompts, Student's t over seeds, explicit generators."""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

RESAMPLES = 4000
EPSILON = 1e-9


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

    def numbers(self) -> list[float]:
        """As records hold it: value, low, high."""
        return [self.value, self.low, self.high]

    def __str__(self) -> str:
        interval = f" [{self.low:.3f}, {self.high:.3f}]" if self.low == self.low else ""
        return f"{self.value:.3f}{interval}"


def stratified_mean(values: np.ndarray, strata: np.ndarray) -> float:
    """Unweighted mean over strata of the mean within (GenEval's overall score when strata are tags)."""
    if not len(values):
        return float("nan")
    return float(stratified_means(np.asarray(values, np.float64), strata))


def stratified_means(values_XN: np.ndarray, strata_N: np.ndarray) -> np.ndarray:
    """`stratified_mean` of every row of values [..., N], [...]."""
    strata_N = np.ascontiguousarray(strata_N)
    order, starts, counts = _groups(strata_N.tobytes(), strata_N.dtype.str)
    return (np.add.reduceat(values_XN[..., order], starts, axis=-1) / counts).mean(-1)


@lru_cache(maxsize=64)
def _groups(strata: bytes, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order that puts a stratum's rows together, where each stratum starts in it, and its size."""
    names = np.frombuffer(strata, dtype)
    _, starts, counts = np.unique(np.sort(names), return_index=True, return_counts=True)
    return np.argsort(names, kind="stable"), starts, counts


@lru_cache(maxsize=8)
def _chances(strata: bytes, seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of rows [R, N] and of seeds [R, S] in every resample; `strata` are integer codes of the rows."""
    rng, codes = np.random.default_rng(seed), np.frombuffer(strata, np.int64)
    count = codes.max() + 1
    rows_RN = np.zeros((RESAMPLES, len(codes)))
    for code in range(count):
        rows = np.flatnonzero(codes == code)
        drawn = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
        rows_RN[:, rows] = drawn / len(rows) / count
    if seeds == 1:
        return rows_RN, np.zeros((RESAMPLES, 1))
    normal, chi2 = rng.normal(size=(RESAMPLES, seeds)), rng.chisquare(seeds - 1, size=(RESAMPLES, 1))
    return rows_RN, normal / np.sqrt(chi2 * seeds)


def resampled_means(values_SN: np.ndarray, strata_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bootstrap distribution [resamples] of the stratified mean over S seeds and N rows.

    Rows are drawn with replacement within every stratum, one draw for all seeds, because the prompts are the same
    ones. Seeds are too few to be drawn: the mean is moved by their spread times Student's t with S - 1 degrees of
    freedom. The chance of single pictures is in the seeds' spread and is taken out of the rows'. One seed has no
    spread: the distribution is then over rows only.
    """
    return _resampled(values_SN[None], strata_N, seed)[0][:, 0]


def _resampled(values_KSN: np.ndarray, strata_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `resampled_means` for K sets of values of the same rows at once, [resamples, K]; and the standard errors [K]
    that come from the rows alone (of several seeds)."""
    _, seeds, _ = values_KSN.shape
    _, codes = np.unique(strata_N, return_inverse=True)
    rows_RN, seeds_RS = _chances(codes.astype(np.int64).tobytes(), seeds, seed)
    row_KN = values_KSN.mean(1)
    drawn_RK = rows_RN @ row_KN.T
    if seeds == 1:
        return drawn_RK, np.zeros(len(values_KSN))
    own_KS = stratified_means(values_KSN, codes)
    mean_K = own_KS.mean(1)
    kept_K, errors_K = np.empty(len(values_KSN)), np.empty(len(values_KSN))
    for k, values_SN in enumerate(values_KSN):
        pictures = values_SN - row_KN[k] - own_KS[k][:, None] + mean_K[k]
        noise = _error_square((pictures**2).sum(0) / (seeds - 1) / seeds, codes, squares=True)
        spread = _error_square(row_KN[k], codes)
        kept_K[k] = np.sqrt(max(0.0, 1 - noise / spread)) if spread > 0 else 0.0
        errors_K[k] = np.sqrt(max(0.0, spread - noise))
    return mean_K + kept_K * (drawn_RK - mean_K) + seeds_RS @ (own_KS - mean_K[:, None]).T, errors_K


def _error_square(row_N: np.ndarray, codes_N: np.ndarray, squares: bool = False) -> float:
    """Squared standard error of the stratified mean over rows; with `squares` the rows are variances themselves."""
    parts = [row_N[codes_N == code] for code in range(codes_N.max() + 1)]
    errors = [(part.mean() if squares else part.var(ddof=1)) / len(part) for part in parts if len(part) > 1]
    return float(sum(errors)) / len(parts) ** 2


def estimate(values_SN: np.ndarray, strata_N: np.ndarray, seed: int = 0) -> Estimate:
    """Mean and interval over seeds [S] and rows [N]; with one seed over rows only."""
    values_SN = np.atleast_2d(values_SN)
    if values_SN.size == 0:
        return Estimate.unknown()
    return estimates([values_SN], strata_N, seed)[0]


def estimates(sets: list[np.ndarray], strata_N: np.ndarray, seed: int = 0) -> list[Estimate]:
    """`estimate` of several sets [S, N] of values of the same rows: points of a course, say. Much faster together."""
    values_KSN = np.stack(sets)
    if values_KSN[0].size == 1:
        return [Estimate(float(values.item()), float("nan"), float("nan")) for values in values_KSN]
    low_K, high_K = np.quantile(_resampled(values_KSN, strata_N, seed)[0], [0.025, 0.975], axis=0)
    means_K = stratified_means(values_KSN, strata_N).mean(1)
    return [Estimate(*map(float, three)) for three in zip(means_K, low_K, high_K)]


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
    gaps_SN = a_SN - b_SN
    draws_RK, (rows_error,) = _resampled(gaps_SN[None], strata_N, seed)
    low, high = np.quantile(draws_RK, [0.025, 0.975])
    own_S = stratified_means(gaps_SN, strata_N)
    value, seeds = float(own_S.mean()), len(own_S)
    seeds_error = own_S.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
    if seeds_error > 0:
        p = _tails(value, rows_error, seeds_error, seeds)
    else:  # counted, and never below what the draws can tell
        tail = min((draws_RK <= 0).mean(), (draws_RK >= 0).mean())
        p = float(np.clip(2 * tail, 1 / len(draws_RK), 1))
    return Difference(value, float(low), float(high), p)


def _tails(value: float, rows_error: float, seeds_error: float, seeds: int) -> float:
    """Share of the distribution on the other side of zero, twice.

    Integrated, not counted: what is compared with a level after Holm's correction would else hang on a handful of
    draws. The rows' part is taken as normal, the seeds' is Student's t.
    """
    from scipy.stats import t

    tail = t.sf((abs(value) + rows_error * _normal()) / seeds_error, seeds - 1).mean()
    return float(min(2 * tail, 1.0))


@cache
def _normal() -> np.ndarray:
    """Equally likely values [RESAMPLES] of a standard normal."""
    from scipy.stats import norm

    return norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)


def p_text(p: float) -> str:
    """A p-value as tables show it."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


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
    whole = [float(stratified_means(x, strata_N).mean()) for x in (a_SN, b_SN)]
    if not whole[1] > 0:
        return Estimate.unknown()
    a, b = (resampled_means(x, strata_N, seed) for x in (a_SN, b_SN))
    shares = np.divide(a, b, out=np.where(a > 0, np.inf, -np.inf), where=b > 0)
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return Estimate(whole[0] / whole[1], float(low), float(high))


def interquartile_mean(values_ST: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of the middle half of the values of S runs on T tasks (Agarwal et al., arXiv 2108.13264); NaN for none.

    As in the paper's code the quarters that are left out are rounded down. The interval is a bootstrap of whole runs,
    because here one run has all tasks (there every task has its own runs). Few runs make it too narrow, and one run
    has none.
    """
    values_ST = np.atleast_2d(values_ST)
    if not values_ST.size or np.isnan(values_ST).any():
        return Estimate.unknown()
    runs = len(values_ST)
    value = float(_middle(values_ST.reshape(1, -1))[0])
    if runs == 1:
        return Estimate(value, float("nan"), float("nan"))
    drawn_RS = np.random.default_rng(seed).integers(runs, size=(RESAMPLES, runs))
    low, high = np.quantile(_middle(values_ST[drawn_RS].reshape(RESAMPLES, -1)), [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _middle(values_XN: np.ndarray) -> np.ndarray:
    """Mean of each row without its lowest and highest quarter."""
    from scipy.stats import trim_mean

    return trim_mean(values_XN, 0.25, axis=1)


def probability_of_improvement(a_S: np.ndarray, b_S: np.ndarray) -> Estimate:
    """P(a run of A scores above a run of B), ties counting half, over seeds (arXiv 2108.13264, Eq. 3).

    The interval is Newcombe's (Statistics in Medicine 25, 2006, method 5): a bootstrap of so few runs has none where
    all of A are above all of B.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    m, n = np.size(a_S), np.size(b_S)
    if not (m and n):
        return Estimate.unknown()
    gap = np.asarray(a_S)[:, None] - np.asarray(b_S)[None, :]
    value = float(((gap > 0) + 0.5 * (gap == 0)).mean())
    others, z = (m + n) / 2 - 1, norm.ppf(0.975)

    def beyond(p: float) -> float:
        """Above 0 where `value` is further from p than chance explains."""
        variance = p * (1 - p) * (1 + others * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return (value - p) ** 2 - z**2 * variance

    # Chance explains the value itself, and neither 0 nor 1 unless it is the value.
    low = brentq(beyond, 0, value - EPSILON) if value > 0 else 0.0
    high = brentq(beyond, value + EPSILON, 1) if value < 1 else 1.0
    return Estimate(value, float(low), float(high))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment of several p-values, in their order; NaN stays NaN and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if not np.isnan(p)), key=lambda i: p_values[i])
    adjusted, highest = list(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
