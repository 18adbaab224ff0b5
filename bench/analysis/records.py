"""Reading finished runs: the headline rows of their models, and the share of the teachers' gain that was recovered."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from bench.analysis.stats import Design, Estimate, codes, joined, ratio, stratified_mean
from bench.errors import UsageError
from bench.registry import find


@dataclass(frozen=True)
class Record:
    """One finished run: its summary, its evaluation rows along training, its settings, its probes' rows."""

    summary: dict
    evaluations: list[dict]
    spec: dict
    probes: list[dict] = field(default_factory=list)


def headline(row: dict) -> tuple[np.ndarray, Design]:
    """Values of an evaluation's headline metric [N], and their design."""
    return metric_rows(row, row["headline"])


def metric_rows(row: dict, metric: str) -> tuple[np.ndarray, Design]:
    """As `headline`, of any metric of the evaluation."""
    return np.array(row["rows"][metric], np.float64), design(row)


def design(row: dict) -> Design:
    """Strata of an evaluation's pictures, and which pictures show one prompt.

    Records made before they said so themselves take it from the registered task (`listed_prompts`); where that cannot
    be told either, every picture counts as a prompt of its own (`prompts_known` says so).
    """
    strata = np.asarray(row["strata"])
    prompts = row.get("prompts")
    return Design(strata, _listed(row.get("task", ""), strata) if prompts is None else np.asarray(prompts))


def prompts_known(row: dict) -> str:
    """Where the prompts of an evaluation's pictures are known from: "record", "task" or "" for nowhere."""
    if row.get("prompts") is not None:
        return "record"
    return "" if _listed(row.get("task", ""), np.asarray(row["strata"])) is None else "task"


def _listed(task: str, strata: np.ndarray) -> np.ndarray | None:
    return listed_prompts(task, tuple(strata.tolist()))


@lru_cache(maxsize=64)
def listed_prompts(task: str, strata: tuple[str, ...]) -> np.ndarray | None:
    """Numbers of the prompts [N] of the held-out split of a registered task on `micro` that has these strata.

    Only that world had records before they held this; its lists are drawn from fixed seeds and belong to the task's
    version. None for another task, or other strata than the list's.
    """
    try:
        held_out = [find("task", task)("micro").prompts(split) for split in ("test", "validation")]
    except Exception:  # another package's task may fail in any way: its list is then not known, and that is said
        return None
    for prompts in held_out:
        if tuple(p.stratum for p in prompts) == strata:
            return codes([p.text for p in prompts])
    return None


def score(row: dict) -> float:
    """The headline metric's mean over strata."""
    return stratified_mean(*headline(row))


def model_rows(summaries: list[dict], model: str, task: str, metric: str | None = None) -> tuple[np.ndarray, Design]:
    """Values [S, N] of a model's headline, or of another metric, over the seeds of several runs, and their design.

    A model that is the same in every run (the base; teachers, unless they were trained seed by seed) is one row that
    all seeds share.
    """
    rows = [s["models"][model][task] for s in summaries]
    found = [metric_rows(row, metric or row["headline"]) for row in rows]
    paired_pictures(task, *(pictures for _, pictures in found))
    values_SN = np.stack([values for values, _ in found])
    same = model != "student" and (values_SN == values_SN[0]).all()
    return values_SN[:1] if same else values_SN, found[0][1]


def paired_pictures(task: str, first: Design, *others: Design) -> Design:
    """The design that all evaluations of a task share. Raises UsageError where rows are not of the same prompts."""
    for other in others:
        same = first.clusters is None or other.clusters is None or np.array_equal(first.clusters, other.clusters)
        if not (same and np.array_equal(first.strata, other.strata)):
            raise UsageError(f"runs were evaluated on different prompts of task {task!r}: their rows cannot be paired")
    return first


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
        values, pictures = model_rows(summaries, "student", task)
        base, scale = model_rows(shown, "base", task)
        taught, _ = model_rows(shown, f"teacher {task}", task)
        paired_pictures(task, pictures, scale)
        student[task] = values - base, pictures
        teacher[task] = (taught if paired else taught.mean(0, keepdims=True)) - base, pictures
    shares = {task: ratio(student[task][0], teacher[task][0], student[task][1]) for task in tasks}
    (all_student, pictures), (all_teacher, _) = joined(student), joined(teacher)
    return shares | {"mean": ratio(all_student, all_teacher, pictures)}
