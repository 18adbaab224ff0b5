"""Fronts: lines that differ only in the weights of their tasks, as points with one score per task, and their
hypervolumes.

The hypervolume is the volume of the vectors of scores from 0 up to some point of the front. Its reference point is 0 in
every task, not the base: a front between opposed tastes runs through points below the base in one of them, and if their
rewards add up to a constant, every front would have a hypervolume of 0 relative to the base.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.analysis.records import NOT_THE_LINE, Record, model_rows, paired_pictures, shows_teachers
from bench.analysis.stats import Design, Estimate, estimate, resampled_points
from bench.hashing import text_hash

TEACHERS = "teachers"
"""Label of the front whose points are the teachers."""
Point = Mapping[str, tuple[np.ndarray, Design]]
"""task -> values [S, N] and design of a model."""


@dataclass(frozen=True)
class Front:
    """Points with the same settings and different weights of the tasks."""

    label: str
    """The lines' method and the settings that they share."""
    seeds: int
    """Number of seeds. A front of lines is over the seeds that all of them have."""
    points: dict[str, dict[str, Estimate]]
    """Label of a line -> headline score per task."""
    best: tuple[str, ...]
    """The lines that no other line of the front dominates, by their mean scores."""
    hypervolume: Estimate
    """Of the mean scores, with its interval over seeds and prompts."""


def fronts(groups: dict[str, list[Record]], tasks: tuple[str, ...]) -> list[Front]:
    """The fronts among lines (label -> its runs), and that of the teachers if there is any other."""
    members: dict[str, list[str]] = {}
    for label, records in groups.items():
        members.setdefault(_settings(records[0]), []).append(label)
    found = []
    for labels in members.values():
        shared = set.intersection(*({record.summary["seed"] for record in groups[label]} for label in labels))
        if len(labels) > 1 and shared:
            points = {}
            for label in labels:
                summaries = [record.summary for record in groups[label] if record.summary["seed"] in shared]
                points[label] = _rows(summaries, "student", tasks)
            found.append(front(_name(labels), points))
    taught = (records for records in groups.values() if all(shows_teachers(record.summary) for record in records))
    summaries = [record.summary for record in next(taught, [])]
    if found and summaries:
        models = [f"teacher {task}" for task in tasks]
        found.append(front(TEACHERS, {model: _rows(summaries, model, tasks) for model in models}))
    return found


def front(label: str, points: Mapping[str, Point]) -> Front:
    """The Front of some models; each has a row of values per seed, or a single row that all seeds share.

    Raises UsageError if they were evaluated on different prompts.
    """
    import moocore

    tasks = list(next(iter(points.values())))
    for task in tasks:
        paired_pictures(task, *(point[task][1] for point in points.values()))
    scores = {name: {task: estimate(*point[task]) for task in tasks} for name, point in points.items()}
    means_KT = np.array([[score.value for score in row.values()] for row in scores.values()])
    undominated = moocore.is_nondominated(means_KT, maximise=True, keep_weakly=True)
    return Front(
        label,
        max(len(values) for point in points.values() for values, _ in point.values()),
        scores,
        tuple(name for name, is_best in zip(points, undominated) if is_best),
        _with_interval(hypervolume(means_KT), resampled_points(list(points.values()))),
    )


def hypervolume(points_KT: np.ndarray) -> float:
    """Hypervolume of K points with one score per task, relative to 0."""
    import moocore

    return float(moocore.hypervolume(points_KT, ref=np.zeros(points_KT.shape[1]), maximise=True))


def _with_interval(value: float, draws_RKT: np.ndarray) -> Estimate:
    """The hypervolume with the basic bootstrap interval, which reflects the distribution at the value.

    The noise of points that are about equally good raises a hypervolume, as a maximum of noisy numbers is too high, and
    raises it once more in resamples. In simulations with five equal points the percentile interval of `estimate` then
    covers 68% only, the basic one 93 to 98%.
    """
    if not np.ptp(draws_RKT, axis=0).any():
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile([hypervolume(points_KT) for points_KT in draws_RKT], [0.025, 0.975])
    return Estimate(value, float(2 * value - high), float(2 * value - low))


def _settings(record: Record) -> str:
    """Hash of a run's settings without the weights of its tasks."""
    settings = {name: value for name, value in record.spec.items() if name not in NOT_THE_LINE}
    params = {name: value for name, value in settings.get("params", {}).items() if name != "weights"}
    return text_hash(settings | {"params": params})


def _name(labels: list[str]) -> str:
    """The part of a line's label that its front shares: without its weights."""
    return min(re.sub(r"(?<=[ ,])weights\.[^,]*,?", "", label).rstrip(" ,") for label in labels)


def _rows(summaries: list[dict], model: str, tasks: tuple[str, ...]) -> dict[str, tuple[np.ndarray, Design]]:
    """A model's headline values and their design, per task."""
    return {task: model_rows(summaries, model, task) for task in tasks}
