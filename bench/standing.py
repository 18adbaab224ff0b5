"""What a comparison shows: every variant's scores, gains, chances and costs, from the records of its runs."""

from dataclasses import dataclass, replace

import numpy as np

from bench.probes.forgetting import score_matrix
from bench.records import Record, model_rows, recovered, score, shows_teachers
from bench.stats import (
    Difference,
    Estimate,
    estimate,
    holm,
    interquartile_mean,
    joined,
    paired_difference,
    probability_of_improvement,
)

TARGET = 0.9
"""Share of the best teacher's score that counts as reaching it."""


@dataclass(frozen=True)
class Goal:
    """A task's scale (NaN where no run has teachers)."""

    base: float
    """At its best guidance."""
    teacher: float
    """The task's own, mean over its seeds."""
    best: float
    """The best of all tasks' teachers."""

    def share(self, score: np.ndarray | float):
        """Score -> share of the teacher's gain over the base; NaN where the teacher gains nothing."""
        gain = self.teacher - self.base
        return (score - self.base) / (gain if gain > 0 else np.nan)

    @property
    def target(self) -> float:
        """What counts as reaching the best teacher, whatever the sign of scores."""
        return self.best - (1 - TARGET) * abs(self.best)


@dataclass(frozen=True)
class Standing:
    """One line of the comparison."""

    label: str
    seeds: int
    tasks: dict[str, Estimate]
    gain: Estimate
    """Share of the teachers' mean gain over the base; interval over seeds and prompts."""
    gain_iqm: Estimate
    """Interquartile mean of the share over tasks and seeds."""
    above_reference: Estimate
    """Probability that a run of this variant has a higher mean score than one of the reference."""
    against_reference: Difference
    """Difference of mean scores to the reference, paired by seed and prompt; p adjusted over the lines by Holm."""
    time_to_target: float
    """Training evaluations until every task is at TARGET of its teacher; infinity if never, NaN without teachers."""
    training_evaluations: float
    teacher_evaluations: float
    """What its teachers cost to train; 0 for methods without teachers."""


def goals(shown: list[dict], tasks: tuple[str, ...]) -> dict[str, Goal]:
    """The scale of each task, from summaries that show every teacher."""
    if not shown:
        return {task: Goal(*[float("nan")] * 3) for task in tasks}
    result = {}
    for task in tasks:
        mean = {m: float(np.mean([score(s["models"][m][task]) for s in shown])) for m in shown[0]["models"]}
        teachers = [mean[f"teacher {other}"] for other in tasks]
        result[task] = Goal(mean["base"], mean[f"teacher {task}"], max(teachers))
    return result


def standings(
    groups: dict[str, list[Record]], tasks: tuple[str, ...], reference: str, teacher_cost: dict[str, float]
) -> list[Standing]:
    """A Standing per variant, in the order given. `teacher_cost` is training evaluations by task."""
    taught = (rs for rs in groups.values() if rs and all(shows_teachers(r.summary) for r in rs))
    shown = [r.summary for r in next(taught, [])]
    scale = goals(shown, tasks)
    lines = [
        _standing(label, records, groups[reference], tasks, scale, shown, teacher_cost)
        for label, records in groups.items()
        if records
    ]
    adjusted = iter(holm([s.against_reference.p for s in lines if s.label != reference]))
    return [s if s.label == reference else _with_p(s, next(adjusted)) for s in lines]


def _standing(label, records, reference, tasks, scale, shown, teacher_cost) -> Standing:
    scores = np.array([[score(r.summary["models"]["student"][t]) for t in tasks] for r in records])
    shares = np.stack([scale[t].share(scores[:, i]) for i, t in enumerate(tasks)], 1)
    other = np.array([[score(r.summary["models"]["student"][t]) for t in tasks] for r in reference])
    if (scores == scores[0]).all():  # what draws nothing at random has one result, however many seeds
        scores, shares = scores[:1], shares[:1]
    has_teachers = bool(records[0].summary["teachers"])
    return Standing(
        label=label,
        seeds=len(records),
        tasks={t: estimate(*model_rows([r.summary for r in records], "student", t)) for t in tasks},
        gain=recovered([r.summary for r in records], shown).get("mean", Estimate.unknown()),
        gain_iqm=interquartile_mean(shares),
        above_reference=probability_of_improvement(scores.mean(1), other.mean(1)),
        against_reference=against(records, reference, tasks),
        time_to_target=_time_to_target(records, tasks, scale),
        training_evaluations=float(np.mean([r.summary["cost"]["evaluations"].get("training", 0) for r in records])),
        teacher_evaluations=sum(teacher_cost.get(t, float("nan")) for t in tasks) if has_teachers else 0.0,
    )


def against(records: list[Record], reference: list[Record], tasks: tuple[str, ...]) -> Difference:
    """Difference of the mean over tasks; common seeds only. One seed says nothing of the methods: p is NaN then."""
    mine = {r.summary["seed"]: r.summary for r in records}
    theirs = {r.summary["seed"]: r.summary for r in reference}
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return Difference.unknown()
    gaps = {}
    for task in tasks:
        a, strata = model_rows([mine[s] for s in seeds], "student", task)
        b, _ = model_rows([theirs[s] for s in seeds], "student", task)
        gaps[task] = (a - b, strata)
    values, strata = joined(gaps)
    difference = paired_difference(values, np.zeros(strata.shape), strata)
    tested = len(seeds) > 1 and values.any()  # the same results to the last bit are no test
    return difference if tested else replace(difference, p=float("nan"))


def _time_to_target(records: list[Record], tasks: tuple[str, ...], scale: dict[str, Goal]) -> float:
    if any(np.isnan(goal.best) for goal in scale.values()):
        return float("nan")
    curves = [score_matrix(r.evaluations, tasks) for r in records]
    shares = sorted(set.intersection(*(set(points) for points, _ in curves)))
    if not shares:
        return float("nan")
    mean = np.mean([matrix[[points.index(share) for share in shares]] for points, matrix in curves], 0)
    reached = [all(mean[k, i] >= scale[t].target for i, t in enumerate(tasks)) for k in range(len(shares))]
    if not any(reached):
        return float("inf")
    budget = np.mean([r.summary["cost"]["evaluations"].get("training", 0) for r in records])
    return float(shares[reached.index(True)] * budget)


def _with_p(standing: Standing, p: float) -> Standing:
    return replace(standing, against_reference=replace(standing.against_reference, p=p))
