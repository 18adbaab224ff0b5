"""Forgetting, from the scores that every run records along training: one definition for joint and cascade alike."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from bench.records import headline, score
from bench.stats import Difference, paired_difference, stratified_means

STAGE_TOLERANCE = 0.01
"""Share of the budget by which a recorded point may miss a stage's end: points are written with few digits."""


@dataclass(frozen=True)
class Forgetting:
    """One task over one method's runs (NaN where it was not evaluated at the end and before)."""

    task: str
    drop_from_best: Difference
    """Best recorded point minus the end: what early stopping on this task would have kept. At least 0, and chosen by
    the same scores: too large by chance. 0 without an interval where the end is the best."""
    change_after_own_stage: Difference | None
    """End minus the end of the task's own stage: backward transfer, negative when later stages undo it (cascade)."""


def score_matrix(evaluations: list[dict], tasks: tuple[str, ...]) -> tuple[list[float], np.ndarray]:
    """Shares of the budget [K] and headline means [K, tasks] of one run; NaN where a task was not evaluated."""
    shares = sorted({row["share"] for row in evaluations})
    matrix = np.full((len(shares), len(tasks)), np.nan)
    for row in evaluations:
        matrix[shares.index(row["share"]), tasks.index(row["task"])] = score(row)
    return shares, matrix


def by_share(
    runs: list[list[dict]], task: str, metric: str | None = None
) -> tuple[dict[float, np.ndarray], np.ndarray]:
    """Share of the budget -> a task's values [S, N] at the points that all S runs have, and the strata [N].

    `metric` None is the task's headline.
    """
    found: dict[float, list[np.ndarray]] = {}
    strata = np.array([])
    for rows in runs:
        for row in rows:
            if row["task"] == task and (metric is None or metric in row["rows"]):
                values, strata = headline(row) if metric is None else (np.array(row["rows"][metric]), headline(row)[1])
                found.setdefault(row["share"], []).append(values)
    return {share: np.stack(seeds) for share, seeds in found.items() if len(seeds) == len(runs)}, strata


def forgetting(runs: list[list[dict]], task: str, own_stage_end: float | None = None) -> Forgetting:
    """Forgetting of one task over the runs (seeds) of a method; `runs` are their evaluation records.

    `own_stage_end` is the share of the budget at which the task's stage ended, for methods that have stages. The
    best point is chosen on the mean over seeds, so that it is one point, not the luckiest of each seed.
    """
    complete, strata = by_share(runs, task)
    if not to_the_end(complete):
        return Forgetting(task, Difference.unknown(), None)
    end = complete[max(complete)]
    best = max(complete, key=lambda share: stratified_means(complete[share] - end, strata).mean())
    stage = min(complete, key=lambda share: abs(share - own_stage_end)) if own_stage_end else None
    if stage is not None and abs(stage - own_stage_end) > STAGE_TOLERANCE:
        stage = None
    return Forgetting(
        task,
        fall(complete[best], end, strata),
        paired_difference(end, complete[stage], strata) if stage is not None else None,
    )


def to_the_end(shares: Collection[float]) -> bool:
    """Whether points of a course are of the end and of something before."""
    return len(shares) > 1 and max(shares) >= 1 - STAGE_TOLERANCE


def fall(best_SN: np.ndarray, end_SN: np.ndarray, strata_N: np.ndarray) -> Difference:
    """The best point minus the end; where they are one point there is nothing to test."""
    if best_SN is end_SN:
        return Difference(0.0, *[float("nan")] * 3)
    return paired_difference(best_SN, end_SN, strata_N)
