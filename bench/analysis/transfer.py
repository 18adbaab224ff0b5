"""Forgetting and transfer as means over tasks, as continual learning reports them.

Both papers index a run by the tasks learnt so far; here a task is learnt at the end of its stage of a cascade, and a
method that trains all tasks at once has its evaluation points instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.analysis.forgetting import by_share, recorded_at, to_the_end
from bench.analysis.records import Record, model_rows, paired_pictures, part_along
from bench.analysis.stats import Design, Difference, joined, paired_difference, stratified_means

Rows = dict[str, tuple[np.ndarray, Design]]
"""task -> differences of scores [S, N], and their design."""


@dataclass(frozen=True)
class Transfer:
    """Means over tasks, NaN where a task was not evaluated as they need it."""

    forgetting: Difference
    """Best earlier point minus the end (Chaudhry et al., arXiv 1801.10112, Eq. 3); negative if the tasks still gain. In
    a cascade the last task is left out, since nothing comes after it. The best point is chosen by the same scores, so
    the mean is biased upwards."""
    backward: Difference | None
    """The end minus the end of each task's stage (Lopez-Paz and Ranzato, arXiv 1706.08840, Eq. 3); None if there are no
    stages."""
    forward: Difference | None
    """The score at the end of the stage before a task's own minus the base's at its best guidance (the same, Eq. 4)."""


def transfer(records: list[Record], tasks: tuple[str, ...], stage_ends: Mapping[str, float]) -> Transfer:
    """The means of a line over its runs (seeds); `stage_ends` are those of a cascade in order, without the last."""
    runs = [record.evaluations for record in records]
    points = {task: by_share(runs, task) for task in tasks}
    order = [*stage_ends, *(task for task in tasks if task not in stage_ends)] if stage_ends else list(tasks)
    lost, back, ahead = {}, {}, {}
    for place, task in enumerate(order):
        scores, pictures = points[task]
        if not to_the_end(scores):
            continue
        end = scores[max(scores)]
        own = recorded_at(scores, stage_ends.get(task))
        if task in stage_ends or not stage_ends:
            earlier = [share for share in scores if share < max(scores)]
            best = max(earlier, key=lambda share: float(stratified_means(scores[share], pictures).mean()))
            lost[task] = scores[best] - end, pictures
        if own is not None:
            back[task] = end - scores[own], pictures
        before = recorded_at(scores, stage_ends[order[place - 1]]) if place and stage_ends else None
        if before is not None:
            summaries = [record.summary for record in records]
            base, others = model_rows(summaries, "base", task, among=part_along(summaries))
            ahead[task] = scores[before] - base, paired_pictures(task, pictures, others)
    stages = len(stage_ends)
    return Transfer(
        _mean(lost, stages or len(tasks)),
        _mean(back, stages) if stages else None,
        _mean(ahead, stages) if stages else None,
    )


def _mean(rows: Rows, wanted: int) -> Difference:
    """The mean over tasks; unknown unless all of them have one."""
    if len(rows) < wanted:
        return Difference.unknown()
    values_SN, pictures = joined(rows)
    return paired_difference(values_SN, np.zeros(values_SN.shape[1]), pictures)
