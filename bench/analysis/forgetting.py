"""Forgetting, from the scores that every run records along training: one definition for joint and cascade alike."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from bench.analysis.records import metric_rows, score
from bench.analysis.stats import Design, Difference, paired_difference, stratified_means

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
    change_in_next_stage: Difference | None = None
    """End of the stage after the task's own minus the end of its own; None where that is the end of all."""


def score_matrix(evaluations: list[dict], tasks: tuple[str, ...]) -> tuple[list[float], np.ndarray]:
    """Shares of the budget [K] and headline means [K, tasks] of one run; NaN where a task was not evaluated."""
    shares = sorted({row["share"] for row in evaluations})
    matrix = np.full((len(shares), len(tasks)), np.nan)
    for row in evaluations:
        matrix[shares.index(row["share"]), tasks.index(row["task"])] = score(row)
    return shares, matrix


def by_share(runs: list[list[dict]], task: str, metric: str | None = None) -> tuple[dict[float, np.ndarray], Design]:
    """Share of the budget -> a task's values [S, N] at the points that all S runs have, and their design.

    `metric` None is the task's headline.
    """
    found: dict[float, list[np.ndarray]] = {}
    pictures = Design(np.array([]))
    for rows in runs:
        for row in rows:
            if row["task"] == task and (metric is None or metric in row["rows"]):
                values, pictures = metric_rows(row, metric or row["headline"])
                found.setdefault(row["share"], []).append(values)
    return {share: np.stack(seeds) for share, seeds in found.items() if len(seeds) == len(runs)}, pictures


def forgetting(
    runs: list[list[dict]], task: str, own_stage_end: float | None = None, next_stage_end: float | None = None
) -> Forgetting:
    """Forgetting of one task over the runs (seeds) of a method; `runs` are their evaluation records.

    `own_stage_end` is the share of the budget at which the task's stage ended, `next_stage_end` that of the stage
    after it, for methods that have stages. A later stage may bring back what the next one undid: both are measured. The
    best point is chosen on the mean over seeds, so that it is one point, not the luckiest of each seed.
    """
    complete, pictures = by_share(runs, task)
    if not to_the_end(complete):
        return Forgetting(task, Difference.unknown(), None)
    end = complete[max(complete)]
    best = max(complete, key=lambda share: stratified_means(complete[share] - end, pictures).mean())
    stage, after = (_recorded(complete, share) for share in (own_stage_end, next_stage_end))
    return Forgetting(
        task,
        fall(complete[best], end, pictures),
        None if stage is None else paired_difference(end, complete[stage], pictures),
        None
        if stage is None or after is None or after == max(complete)
        else paired_difference(complete[after], complete[stage], pictures),
    )


def _recorded(shares: Collection[float], wanted: float | None) -> float | None:
    """The recorded point that is a stage's end; None where there is none."""
    if not wanted:
        return None
    nearest = min(shares, key=lambda share: abs(share - wanted))
    return nearest if abs(nearest - wanted) <= STAGE_TOLERANCE else None


def to_the_end(shares: Collection[float]) -> bool:
    """Whether points of a course are of the end and of something before."""
    return len(shares) > 1 and max(shares) >= 1 - STAGE_TOLERANCE


def fall(best_SN: np.ndarray, end_SN: np.ndarray, pictures: Design) -> Difference:
    """The best point minus the end; where they are one point there is nothing to test."""
    if best_SN is end_SN:
        return Difference(0.0, *[float("nan")] * 3)
    return paired_difference(best_SN, end_SN, pictures)
