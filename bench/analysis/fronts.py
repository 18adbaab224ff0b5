"""Fronts and their hypervolumes: points with one score per task.

The points are lines that differ only in the weights of their tasks, or the students of one line that trains one for all
weights at once (Method.points).

The hypervolume is the volume of the vectors of scores from 0 up to some point of the front. Its reference point is 0 in
every task, not the base: a front between opposed tastes runs through points below the base in one of them, and if their
rewards add up to a constant, every front would have a hypervolume of 0 relative to the base.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bench.analysis.records import Record, line_settings, model_rows, paired_pictures, shows_teachers
from bench.analysis.stats import Design, Estimate, estimate, resampled_points, stratified_means
from bench.hashing import text_hash

TEACHERS = "teachers"
"""Label of the front whose points are the teachers."""
FAMILY = "(one for all weights)"
"""Ends the label of a front whose points are the students of one line."""
Point = Mapping[str, tuple[np.ndarray, Design]]
"""task -> values [S, N] of a model and their design."""
Points = Mapping[str, Point]
"""Name of a model -> its values."""


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
    against_first: Estimate = field(default_factory=Estimate.unknown)
    """Hypervolume minus that of the first front, paired by seed and prompt over the seeds of both; NaN for the first
    itself and without common seeds."""


@dataclass(frozen=True)
class _Model:
    """A model of the runs of one line."""

    summaries: dict[int, dict]
    """Seed -> summary."""
    name: str
    """Its name in the summaries."""
    among: str = "models"
    """The part of the summaries that has it."""


def fronts(groups: dict[str, list[Record]], tasks: tuple[str, ...]) -> list[Front]:
    """The fronts among lines (label -> its runs), and that of the teachers if there is any other."""
    members: dict[str, dict[str, _Model]] = {}
    for label, records in groups.items():
        member = _Model({record.summary["seed"]: record.summary for record in records}, "student")
        members.setdefault(_settings(records[0]), {})[label] = member
    found: dict[str, dict[str, _Model]] = {}
    for lines in members.values():
        if len(lines) > 1 and _seeds(lines):
            name = _name(lines)
            # Lines of several comparisons may have equal labels, which then end in an identity.
            found[f"{name} ({min(lines)})" if name in found else name] = lines
    for label, records in groups.items():
        if points := _common_points(records):
            by_seed = {record.summary["seed"]: record.summary for record in records}
            # Its label may be that of a front of lines: they may come from several comparisons.
            found[f"{label} {FAMILY}"] = {point: _Model(by_seed, point, "points") for point in points}
    taught = (records for records in groups.values() if all(shows_teachers(record.summary) for record in records))
    summaries = {record.summary["seed"]: record.summary for record in next(taught, [])}
    if found and summaries:
        found[TEACHERS] = {name: _Model(summaries, name) for name in (f"teacher {task}" for task in tasks)}
    result: list[Front] = []
    for label, models in found.items():
        made = front(label, _points(models, tasks, _seeds(models)))
        if result:
            first = found[result[0].label]
            seeds = [seed for seed in _seeds(models) if seed in _seeds(first)]
            if seeds:
                gap = difference(_points(models, tasks, seeds), _points(first, tasks, seeds))
                made = replace(made, against_first=gap)
        result.append(made)
    return result


def front(label: str, points: Points) -> Front:
    """The Front of some models; each has a row of values per seed, or a single row that all seeds share.

    Raises UsageError if they were evaluated on different prompts.
    """
    import moocore

    _check_prompts(list(points.values()))
    scores = {name: {task: estimate(*own) for task, own in point.items()} for name, point in points.items()}
    means_KT = _means(points)
    undominated = moocore.is_nondominated(means_KT, maximise=True, keep_weakly=True)
    draws_R = [hypervolume(drawn_KT) for drawn_KT in resampled_points(list(points.values()))]
    return Front(
        label,
        max(len(values) for point in points.values() for values, _ in point.values()),
        scores,
        tuple(name for name, is_best in zip(points, undominated) if is_best),
        _with_interval(hypervolume(means_KT), np.array(draws_R)),
    )


def difference(a: Points, b: Points) -> Estimate:
    """Hypervolume of A minus that of B, paired by seed and prompt. They must have the same seeds.

    Raises UsageError if they were evaluated on different prompts.
    """
    _check_prompts([*a.values(), *b.values()])
    drawn_RKT = resampled_points([*a.values(), *b.values()])
    gaps_R = [hypervolume(drawn_KT[: len(a)]) - hypervolume(drawn_KT[len(a) :]) for drawn_KT in drawn_RKT]
    return _with_interval(hypervolume(_means(a)) - hypervolume(_means(b)), np.array(gaps_R))


def hypervolume(points_KT: np.ndarray) -> float:
    """Hypervolume of K points with one score per task, relative to 0."""
    import moocore

    return float(moocore.hypervolume(points_KT, ref=np.zeros(points_KT.shape[1]), maximise=True))


def _with_interval(value: float, draws_R: np.ndarray) -> Estimate:
    """A value with its basic bootstrap interval, which reflects the distribution at the value.

    The noise of points that are about equally good raises a hypervolume, as a maximum of noisy numbers is too high, and
    raises it once more in resamples. In simulations with three equal points of five the percentile interval of
    `estimate` then covers 68 to 89%, the basic one 93 to 97%. There is no interval if nothing varies.
    """
    if not np.ptp(draws_R):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(draws_R, [0.025, 0.975])
    return Estimate(value, float(2 * value - high), float(2 * value - low))


def _check_prompts(points: list[Point]) -> None:
    for task in points[0]:
        paired_pictures(task, *(point[task][1] for point in points))


def _means(points: Points) -> np.ndarray:
    """Mean scores, [K, T]."""
    return np.array([[stratified_means(*task).mean() for task in point.values()] for point in points.values()])


def _common_points(records: list[Record]) -> list[str]:
    """The further students (Method.points) that all runs of a line have."""
    first, *others = (record.summary.get("points", {}) for record in records)
    return [point for point in first if all(point in other for other in others)]


def _seeds(models: dict[str, _Model]) -> list[int]:
    """The seeds that all models have."""
    return sorted(set.intersection(*(set(model.summaries) for model in models.values())))


def _points(models: dict[str, _Model], tasks: tuple[str, ...], seeds: list[int]) -> Points:
    """Headline values of models for some seeds, in their order."""
    return {
        label: {
            task: model_rows([model.summaries[seed] for seed in seeds], model.name, task, among=model.among)
            for task in tasks
        }
        for label, model in models.items()
    }


def _settings(record: Record) -> str:
    """Hash of a run's settings without the weights of its tasks."""
    settings = line_settings(record.spec)
    params = {name: value for name, value in settings.get("params", {}).items() if name != "weights"}
    return text_hash(settings | {"params": params})


def _name(labels: Iterable[str]) -> str:
    """The part of a line's label that its front shares: without its weights."""
    return min(re.sub(r"(?<=[ ,])weights\.[^,]*,?", "", label).rstrip(" ,") for label in labels)
