"""The numbers of a comparison: scores, gains, tests and costs of every line, from the records of its runs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from bench.analysis.beside import measures, metrics_beside
from bench.analysis.forgetting import score_matrix
from bench.analysis.records import Record, model_rows, paired_pictures, part_along, recovered, score, shows_teachers
from bench.analysis.stats import (
    Design,
    Difference,
    Estimate,
    equivalence,
    estimate,
    holm_within,
    interquartile_mean,
    joined,
    paired_difference,
    probability_of_improvement,
)

TARGET = 0.9
"""Fraction of the best teacher's score that counts as reaching it."""
MARGIN = 0.1
"""Equivalence margin as a fraction of the teachers' mean gain over the base: as with TARGET, a student that misses its
teacher by less than a tenth counts as matching it."""
PRIMARY = {"multi_reward": {"engine": "nft"}, "cascade": {"engine": "nft"}, "opd_ppo": {"advantage": "log_ratio"}}
"""The comparisons that the paper's claims are about: analytic OPD against joint RL, a cascade and PPO-style OPD, each
with these settings of its recipe. They form one family in Holm's correction, whatever else a table contains. All other
lines are exploratory and form a second family."""
PRIMARY_FAMILY, EXPLORATORY = "primary", "exploratory"


@dataclass(frozen=True)
class Goal:
    """The scores that a task's results are scaled by; NaN if no run has teachers."""

    base: float
    """The base's score at its best guidance scale."""
    teacher: float
    """The score of the task's own teacher, mean over seeds."""
    best: float
    """The highest score among the teachers of all tasks."""

    def recovered(self, score: np.ndarray | float):
        """Gain recovered at a score; NaN if the teacher gains nothing."""
        gain = self.teacher - self.base
        return (score - self.base) / (gain if gain > 0 else np.nan)

    @property
    def target(self) -> float:
        """The score that counts as reaching the best teacher, for scores of either sign."""
        return self.best - (1 - TARGET) * abs(self.best)


@dataclass(frozen=True)
class Standing:
    """One line of the comparison."""

    label: str
    """The method and the settings in which it differs from its recipe."""
    seeds: int
    """Number of seeds."""
    tasks: dict[str, Estimate]
    """Headline score per task."""
    gain: Estimate
    """Gain recovered, as a fraction of the teachers' mean gain; interval over seeds and prompts."""
    worst: Estimate
    """The lowest gain recovered of any task, which the mean can hide."""
    worst_task: str
    """The task with that gain; empty without teachers."""
    beside: dict[str, Estimate]
    """ "task: metric" -> estimate, for the stricter metrics in the records."""
    measures: dict[str, Estimate]
    """Measure of diversity or drift -> estimate of its mean over tasks."""
    gain_iqm: Estimate
    """Interquartile mean of the gain recovered over tasks and seeds."""
    above_reference: Estimate
    """Probability that a run of this line has a higher mean score than a run of the reference."""
    against_reference: Difference
    """Mean score minus that of the reference, paired by seed and prompt; p is Holm-adjusted within the family."""
    family: str
    """Primary or exploratory; empty for the reference."""
    margin: float
    """Largest difference of mean scores at which a line is equivalent to the reference; NaN without teachers."""
    p_equivalent: float
    """p-value of two one-sided tests that the difference is within the margin, Holm-adjusted within the family."""
    time_to_target: float
    """Training NFE until the mean over seeds reaches TARGET of the best teacher in every task; infinity if never, NaN
    without teachers."""
    seeds_at_target: int
    """Number of seeds that reach all targets at some recorded point."""
    training_nfe: float
    """Training NFE, mean over seeds."""
    teacher_nfe: float
    """NFE for training its teachers; 0 for methods without teachers."""


def goals(shown: list[dict], tasks: tuple[str, ...], among: str = "models") -> dict[str, Goal]:
    """The Goal of each task, from summaries that include every teacher; NaN without summaries.

    `among` is the part of the summaries that has the models: "models" with final scores, or "along" with those that
    points along training are compared with.
    """
    if not shown:
        return {task: Goal(*[float("nan")] * 3) for task in tasks}
    result = {}
    for task in tasks:
        mean = {}
        for model in shown[0][among]:
            mean[model] = float(np.mean([score(summary[among][model][task]) for summary in shown]))
        teachers = [mean[f"teacher {other}"] for other in tasks]
        result[task] = Goal(mean["base"], mean[f"teacher {task}"], max(teachers))
    return result


def targets(shown: list[dict], tasks: tuple[str, ...]) -> dict[str, float]:
    """task -> the score along training that counts as reaching the best teacher; NaN without summaries.

    Where every model's final score is at its own best guidance scale, points along training are not: they are compared
    with the teachers at the scale that both have there.
    """
    return {task: goal.target for task, goal in goals(shown, tasks, part_along(shown)).items()}


def standings(
    groups: dict[str, list[Record]], tasks: tuple[str, ...], reference: str, teacher_cost: dict[str, float]
) -> list[Standing]:
    """The Standing of every line, in the given order. `teacher_cost` maps tasks to their teachers' training NFE."""
    shown = taught(groups.values())
    scale = goals(shown, tasks)
    lines = [
        _standing(label, records, groups[reference], tasks, scale, shown, teacher_cost)
        for label, records in groups.items()
        if records
    ]
    families = [s.family for s in lines]
    # NaN keeps the reference's comparison with itself out of the number of tests.
    p_values = [float("nan") if s.label == reference else s.against_reference.p for s in lines]
    gaps = holm_within(p_values, families)
    same = holm_within([s.p_equivalent for s in lines], families)
    adjusted = []
    for line, p, p_equivalent in zip(lines, gaps, same):
        if line.label != reference:
            difference = replace(line.against_reference, p=p)
            line = replace(line, against_reference=difference, p_equivalent=p_equivalent)
        adjusted.append(line)
    return adjusted


def taught(lines: Iterable[list[Record]]) -> list[dict]:
    """The summaries of the first line with teachers, which sets the scale of all lines; empty if none has some."""
    having = (records for records in lines if records and _show_teachers(records))
    return [record.summary for record in next(having, [])]


def _show_teachers(records: list[Record]) -> bool:
    """Whether every run evaluated a teacher for each of its tasks."""
    return all(shows_teachers(record.summary) for record in records)


def family(records: list[Record], reference: list[Record]) -> str:
    """The family of a line's comparison with the reference, primary or exploratory; empty for the reference itself."""
    if records is reference:
        return ""
    method = records[0].summary.get("method", "")
    params = records[0].spec.get("params", {})
    wanted = PRIMARY.get(method) if reference[0].summary.get("method") == "opd_analytic" else None
    primary = wanted is not None and all(params.get(key, value) == value for key, value in wanted.items())
    return PRIMARY_FAMILY if primary else EXPLORATORY


def _standing(label, records, reference, tasks, scale, shown, teacher_cost) -> Standing:
    scores = _student_scores(records, tasks)
    shares = np.stack([scale[t].recovered(scores[:, i]) for i, t in enumerate(tasks)], 1)
    other = _student_scores(reference, tasks)
    # A method without randomness has a single result, however many seeds were run.
    if (scores == scores[0]).all():
        scores, shares = scores[:1], shares[:1]
    has_teachers = bool(records[0].summary["teachers"])
    summaries = [r.summary for r in records]
    gains = recovered(summaries, shown)
    by_task = {task: share for task, share in gains.items() if task != "mean" and not np.isnan(share.value)}
    worst_task = min(by_task, key=lambda task: by_task[task].value, default="")
    margin = MARGIN * float(np.mean([goal.teacher - goal.base for goal in scale.values()]))
    when, reaching = _to_target(records, tasks, targets(shown, tasks))
    return Standing(
        label=label,
        seeds=len(records),
        tasks={t: estimate(*model_rows(summaries, "student", t)) for t in tasks},
        gain=gains.get("mean", Estimate.unknown()),
        worst=by_task.get(worst_task, Estimate.unknown()),
        worst_task=worst_task,
        beside=metrics_beside(summaries, dict.fromkeys(tasks, "student")),
        measures=measures(summaries, dict.fromkeys(tasks, "student")),
        gain_iqm=interquartile_mean(shares),
        above_reference=probability_of_improvement(scores.mean(1), other.mean(1)),
        against_reference=against(records, reference, tasks),
        family=family(records, reference),
        margin=margin if margin > 0 else float("nan"),
        p_equivalent=_equivalence(records, reference, tasks, margin),
        time_to_target=when,
        seeds_at_target=reaching,
        training_nfe=float(np.mean([_training_nfe(record) for record in records])),
        teacher_nfe=sum(teacher_cost.get(t, float("nan")) for t in tasks) if has_teachers else 0.0,
    )


def _student_scores(records: list[Record], tasks: tuple[str, ...]) -> np.ndarray:
    """Headline scores of the students, [S, tasks]."""
    students = [record.summary["models"]["student"] for record in records]
    return np.array([[score(student[task]) for task in tasks] for student in students])


def _training_nfe(record: Record) -> float:
    """Training NFE of a run. Records use the older key `evaluations`."""
    return float(record.summary["cost"]["evaluations"].get("training", 0))


def against(
    records: list[Record], reference: list[Record], tasks: tuple[str, ...], metric: str | None = None
) -> Difference:
    """Difference of the means over tasks for the common seeds, of the headlines or of another metric that all have.

    p is NaN for a single seed, which says nothing about the methods' variation between runs.
    """
    values, pictures, seeds = paired_by_seed(records, reference, tasks, metric)
    if not seeds:
        return Difference.unknown()
    difference = paired_difference(values, np.zeros(values.shape[1]), pictures)
    tested = seeds > 1 and values.any()  # bit-identical results leave nothing to test
    return difference if tested else replace(difference, p=float("nan"))


def _equivalence(records: list[Record], reference: list[Record], tasks: tuple[str, ...], margin: float) -> float:
    """p-value of two one-sided tests; NaN without a margin, and whenever `against` gives no p-value."""
    values, pictures, seeds = paired_by_seed(records, reference, tasks)
    if not (margin > 0 and seeds > 1 and values.any()):
        return float("nan")
    return equivalence(values, np.zeros(values.shape[1]), pictures, margin)


def paired_by_seed(
    records: list[Record], reference: list[Record], tasks: tuple[str, ...], metric: str | None = None
) -> tuple[np.ndarray, Design, int]:
    """Differences [S, N] of the students' rows on all tasks for the S common seeds, their design, and S.

    Of the headlines, or of another metric that all tasks have.
    """
    mine = {r.summary["seed"]: r.summary for r in records}
    theirs = {r.summary["seed"]: r.summary for r in reference}
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return np.zeros((0, 0)), Design(np.array([])), 0
    gaps = {}
    for task in tasks:
        a, pictures = model_rows([mine[s] for s in seeds], "student", task, metric)
        b, others = model_rows([theirs[s] for s in seeds], "student", task, metric)
        gaps[task] = (a - b, paired_pictures(task, pictures, others))
    return *joined(gaps), len(seeds)


def reached_between(record: Record, tasks: tuple[str, ...], wanted: dict[str, float]) -> tuple[float, float]:
    """Training NFE between which a run first reaches every target: the last recorded point before, the first with it.

    The run reached them somewhere in between (interval-censored). The first is 0 where the first point has them, and
    the second is infinity where no point has.
    """
    shares, scores_KT = score_matrix(record.evaluations, tasks)
    spent_K = [nfe_at(record, share) for share in shares]
    reached_K = (scores_KT >= np.array([wanted[task] for task in tasks])).all(-1)
    if not reached_K.any():
        return max(spent_K, default=0.0), float("inf")
    first = int(reached_K.argmax())
    return (spent_K[first - 1] if first else 0.0), spent_K[first]


def nfe_at(record: Record, share: float) -> float:
    """Training NFE of a run at the recorded point of a fraction of its budget.

    A point is measured after the update that completes its fraction, so that more than the fraction itself may be
    spent (`bench.store.points`). Without a log of updates the run's NFE are taken in proportion to the fraction.
    """
    row = next(row for row in record.evaluations if row["share"] == share)
    if "nfe" in row:
        return float(row["nfe"])
    # A run that an alarm ended has spent its NFE at its last point, before the end of its budget.
    last = max(row["share"] for row in record.evaluations)
    return share / last * _training_nfe(record) if last else 0.0


def _to_target(records: list[Record], tasks: tuple[str, ...], wanted: dict[str, float]) -> tuple[float, int]:
    """Training NFE until the mean over seeds reaches every target, and how many seeds reach them at any point."""
    if any(map(np.isnan, wanted.values())):
        return float("nan"), 0
    curves = [score_matrix(r.evaluations, tasks) for r in records]
    shares = sorted(set.intersection(*(set(points) for points, _ in curves)))
    if not shares:
        return float("nan"), 0
    at_shares = []
    for points, matrix in curves:
        at_shares.append(matrix[[points.index(share) for share in shares]])
    scores_SKT = np.stack(at_shares)
    targets_T = np.array([wanted[task] for task in tasks])
    reaching = int((scores_SKT >= targets_T).all(-1).any(-1).sum())
    reached_K = (scores_SKT.mean(0) >= targets_T).all(-1)
    if not reached_K.any():
        return float("inf"), reaching
    first = int(reached_K.argmax())
    return float(np.mean([nfe_at(record, shares[first]) for record in records])), reaching
