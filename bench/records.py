"""Reading finished runs: the headline rows of their models, and the share of the teachers' gain that was recovered."""

from dataclasses import dataclass, field

import numpy as np

from bench.stats import Estimate, joined, ratio, stratified_mean


@dataclass(frozen=True)
class Record:
    """One finished run: its summary, its evaluation rows along training, its settings, its probes' rows."""

    summary: dict
    evaluations: list[dict]
    spec: dict
    probes: list[dict] = field(default_factory=list)


def headline(row: dict) -> tuple[np.ndarray, np.ndarray]:
    """Values of an evaluation's headline metric [N], and their strata [N]."""
    return np.array(row["rows"][row["headline"]], np.float64), np.array(row["strata"])


def score(row: dict) -> float:
    """The headline metric's mean over strata."""
    return stratified_mean(*headline(row))


def model_rows(summaries: list[dict], model: str, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Headline values [S, N] of a model over the seeds of several runs, and their strata [N].

    A model that is the same in every run (the base; teachers, unless they were trained seed by seed) is one row that
    all seeds share.
    """
    found = [headline(s["models"][model][task]) for s in summaries]
    values_SN = np.stack([values for values, _ in found])
    same = model != "student" and (values_SN == values_SN[0]).all()
    return values_SN[:1] if same else values_SN, found[0][1]


def shows_teachers(summary: dict) -> bool:
    """Whether the run evaluated a teacher for each of its tasks."""
    return all(f"teacher {task}" in summary["models"] for task in summary["models"]["student"])


def recovered(summaries: list[dict], shown: list[dict] | None = None) -> dict[str, Estimate]:
    """Share of the teacher's gain over the base that the student recovers: per task, and of the mean gain ('mean').

    `shown` are the summaries whose base and teachers set the scale, for runs without teachers; None: the runs' own.
    Where both have the same seeds they are paired, else the scale is the teachers' mean. Empty when there are no
    teachers; NaN where the teacher gains nothing.
    """
    tasks, shown = list(summaries[0]["models"]["student"]), shown or summaries
    if not all(map(shows_teachers, shown)):
        return {}
    paired = [s["seed"] for s in summaries] == [s["seed"] for s in shown]
    student, teacher = {}, {}
    for task in tasks:
        base, strata = model_rows(shown, "base", task)
        taught, _ = model_rows(shown, f"teacher {task}", task)
        student[task] = model_rows(summaries, "student", task)[0] - base, strata
        teacher[task] = (taught if paired else taught.mean(0, keepdims=True)) - base, strata
    shares = {task: ratio(student[task][0], teacher[task][0], student[task][1]) for task in tasks}
    (all_student, strata), (all_teacher, _) = joined(student), joined(teacher)
    return shares | {"mean": ratio(all_student, all_teacher, strata)}
