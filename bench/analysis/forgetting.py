"""Forgetting, from the scores that every run records along training, with one definition for joint and cascade."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from bench.analysis.metric_names import is_measure
from bench.analysis.records import metric_rows, score, without_gaps
from bench.analysis.stats import Design, Difference, paired_difference, stratified_means

STAGE_TOLERANCE = 0.01
"""Fraction of the budget by which a recorded point may differ from a stage's end, because points are rounded."""


@dataclass(frozen=True)
class Forgetting:
    """Forgetting of one task over a method's runs; NaN if the task was not evaluated at the end and before it."""

    task: str
    drop_from_best: Difference
    """Best recorded point minus the end: what early stopping on this task would have kept. At least 0, and biased
    upwards because the best point is chosen by the same scores. 0 without an interval if the end is the best point."""
    change_after_own_stage: Difference | None
    """The end minus the end of the task's own stage: backward transfer, negative if later stages undo it (cascade)."""
    change_in_next_stage: Difference | None = None
    """The end of the next stage minus the end of the task's own stage; None if the next stage ends the run."""


def score_matrix(evaluations: list[dict], tasks: tuple[str, ...]) -> tuple[list[float], np.ndarray]:
    """Fractions of the budget [K] and headline means [K, tasks] of one run; NaN where a task was not evaluated."""
    shares = sorted({row["share"] for row in evaluations})
    matrix = np.full((len(shares), len(tasks)), np.nan)
    for row in evaluations:
        matrix[shares.index(row["share"]), tasks.index(row["task"])] = score(row)
    return shares, matrix


def by_share(runs: list[list[dict]], task: str, metric: str | None = None) -> tuple[dict[float, np.ndarray], Design]:
    """Fraction of the budget -> a task's values [S, N] at the points that all S runs have, and their design.

    `metric` None means the task's headline. Images that lack a measure at any of the points are left out.
    """
    found: dict[float, list[np.ndarray]] = {}
    pictures = Design(np.array([]))
    for rows in runs:
        for row in rows:
            measured = metric is None or metric in row["rows"]
            if row["task"] == task and measured:
                values, pictures = metric_rows(row, metric or row["headline"])
                found.setdefault(row["share"], []).append(values)
    complete = {share: np.stack(seeds) for share, seeds in found.items() if len(seeds) == len(runs)}
    if not complete:
        return {}, pictures
    values_KSN = np.stack(list(complete.values()))
    if metric and is_measure(metric):
        values_KSN, pictures = without_gaps(values_KSN, pictures)
    return dict(zip(complete, values_KSN)) if values_KSN.size else {}, pictures


def forgetting(
    runs: list[list[dict]], task: str, own_stage_end: float | None = None, next_stage_end: float | None = None
) -> Forgetting:
    """Forgetting of one task over the runs (seeds) of a method; `runs` are their evaluation records.

    For methods with stages, `own_stage_end` is the fraction of the budget at which the task's stage ended, and
    `next_stage_end` that of the following stage. Both changes are measured, because a later stage may restore what the
    next one undid. The best point is chosen by the mean over seeds, so that it is the same point for every seed.
    """
    complete, pictures = by_share(runs, task)
    if not to_the_end(complete):
        return Forgetting(task, Difference.unknown(), None)
    end = complete[max(complete)]
    best = max(complete, key=lambda share: stratified_means(complete[share] - end, pictures).mean())
    drop = fall(complete[best], end, pictures)
    stage = recorded_at(complete, own_stage_end)
    if stage is None:
        return Forgetting(task, drop, None)
    own_change = paired_difference(end, complete[stage], pictures)
    after = recorded_at(complete, next_stage_end)
    # A next stage that ends the run would repeat the change above.
    if after is None or after == max(complete):
        return Forgetting(task, drop, own_change)
    return Forgetting(task, drop, own_change, paired_difference(complete[after], complete[stage], pictures))


def recorded_at(shares: Collection[float], wanted: float | None) -> float | None:
    """The recorded point at a stage's end; None if there is none within STAGE_TOLERANCE."""
    if not wanted:
        return None
    nearest = min(shares, key=lambda share: abs(share - wanted))
    return nearest if abs(nearest - wanted) <= STAGE_TOLERANCE else None


def to_the_end(shares: Collection[float]) -> bool:
    """Whether recorded points include the end of the budget and an earlier point."""
    return len(shares) > 1 and max(shares) >= 1 - STAGE_TOLERANCE


def fall(best_SN: np.ndarray, end_SN: np.ndarray, pictures: Design) -> Difference:
    """The best point minus the end; 0 without an interval if they are the same point, which leaves nothing to test."""
    if best_SN is end_SN:
        return Difference(0.0, *[float("nan")] * 3)
    return paired_difference(best_SN, end_SN, pictures)
