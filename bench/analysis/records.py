"""Reading finished runs: the headline scores of their models, and the gain recovered."""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from bench.analysis.metric_names import is_measure
from bench.analysis.stats import Design, Estimate, codes, joined, ratio, stratified_mean, stratified_means
from bench.errors import UsageError
from bench.registry import find

NOT_THE_LINE = ("seed", "evaluation", "probes", "checkpoint_every", "device", "trackers")
"""Settings in which runs of one line may differ."""
STOPS = "stop_on_alarm"


def line_settings(spec: dict) -> dict:
    """The settings of a recorded spec that make its line: all but those in which the runs of one line may differ."""
    settings = {name: value for name, value in spec.items() if name not in NOT_THE_LINE}
    # The one setting of evaluations that changes which model a run ends with.
    stops = spec.get("evaluation", {}).get(STOPS, False)
    return settings | ({STOPS: True} if stops else {})


@dataclass(frozen=True)
class Record:
    """The records of one finished run."""

    summary: dict
    """Final scores and costs."""
    evaluations: list[dict]
    """Held-out evaluations along training, one row per point and task."""
    spec: dict
    """Settings of the run."""
    probes: list[dict] = field(default_factory=list)
    """Measurements of the probes along training."""


def headline(row: dict) -> tuple[np.ndarray, Design]:
    """Values [N] of an evaluation's headline metric, and their design."""
    return metric_rows(row, row["headline"])


def metric_rows(row: dict, metric: str) -> tuple[np.ndarray, Design]:
    """Values [N] of any metric of an evaluation, NaN for images without one, and their design. Not to be changed."""
    return np.asarray(row["rows"][metric], np.float64), design(row)


def without_gaps(values_XSN: np.ndarray, pictures: Design) -> tuple[np.ndarray, Design]:
    """Values [..., N] and their design without the images that lack a value anywhere."""
    known = ~np.isnan(values_XSN).any(tuple(range(values_XSN.ndim - 1)))
    return (values_XSN, pictures) if known.all() else (values_XSN[..., known], pictures.kept(known))


def design(row: dict) -> Design:
    """Strata of an evaluation's images, and which images share a prompt.

    Older records do not contain the prompts, which are then taken from the registered task (`listed_prompts`). If they
    are not known there either, every image counts as a separate prompt (`prompts_known` returns "").
    """
    strata = np.asarray(row["strata"])
    prompts = row.get("prompts")
    clusters = _listed(row.get("task", ""), strata) if prompts is None else np.asarray(prompts)
    return Design(strata, clusters)


def prompts_known(row: dict) -> str:
    """The source of an evaluation's prompts: "record", "task", or "" if they are unknown."""
    if row.get("prompts") is not None:
        return "record"
    listed = _listed(row.get("task", ""), np.asarray(row["strata"]))
    return "" if listed is None else "task"


def _listed(task: str, strata: np.ndarray) -> np.ndarray | None:
    return listed_prompts(task, tuple(strata.tolist()))


@lru_cache(maxsize=64)
def listed_prompts(task: str, strata: tuple[str, ...]) -> np.ndarray | None:
    """Number of each image's prompt, [N], in the held-out split of a registered task on `micro` with these strata.

    All records without prompts are from that world, whose lists are drawn from fixed seeds and belong to the task's
    version. None for an unknown task, or if no split has these strata.
    """
    try:
        held_out = [find("task", task)("micro").prompts(split) for split in ("test", "validation")]
    except Exception:  # the task of another package may raise anything
        return None
    for prompts in held_out:
        if tuple(p.stratum for p in prompts) == strata:
            return codes([p.text for p in prompts])
    return None


def score(row: dict) -> float:
    """Mean of an evaluation's headline metric over strata."""
    return stratified_mean(*headline(row))


def model_rows(
    summaries: list[dict], model: str, task: str, metric: str | None = None, among: str = "models"
) -> tuple[np.ndarray, Design]:
    """Values [S, N] of a model's headline or another metric over the seeds of several runs, and their design.

    `among` is the part of the summaries that has the model: "models", or "points" for the further students of a run. A
    model that is the same in every run (the base, and teachers that were not trained per seed) has a single row, which
    all seeds share. Images that lack a measure in any run are left out. Raises UsageError if the runs were evaluated on
    different prompts.
    """
    rows = [s[among][model][task] for s in summaries]
    found = [metric_rows(row, metric or row["headline"]) for row in rows]
    paired_pictures(task, *(pictures for _, pictures in found))
    values_SN, pictures = np.stack([values for values, _ in found]), found[0][1]
    if metric and is_measure(metric):
        values_SN, pictures = without_gaps(values_SN, pictures)
    same = model != "student" and among != "points" and (values_SN == values_SN[0]).all()
    return values_SN[:1] if same else values_SN, pictures


def part_along(summaries: list[dict]) -> str:
    """The part of summaries whose models points along training are compared with, at the guidance scale of both.

    "along" where every model's final score is at its own best scale, and "models" otherwise.
    """
    return "along" if summaries and all("along" in summary for summary in summaries) else "models"


def paired_pictures(task: str, first: Design, *others: Design) -> Design:
    """The design that all evaluations of a task share. Raises UsageError if their rows are not of the same prompts."""
    for other in others:
        # Older records have no prompts; only their strata can be compared.
        same = first.clusters is None or other.clusters is None or np.array_equal(first.clusters, other.clusters)
        if not (same and np.array_equal(first.strata, other.strata)):
            raise UsageError(f"runs were evaluated on different prompts of task {task!r}: their rows cannot be paired")
    return first


def shows_teachers(summary: dict) -> bool:
    """Whether the run evaluated a teacher for each of its tasks."""
    models = summary["models"]
    return all(f"teacher {task}" in models for task in models["student"])


def recovered(summaries: list[dict], shown: list[dict] | None = None) -> dict[str, Estimate]:
    """Gain recovered: the student's gain over the base as a fraction of the teacher's, per task and for the mean gain
    ('mean').

    `shown` are the summaries whose base and teachers set the scale, for runs without teachers; None means the runs'
    own. Student and teacher are paired if both have the same seeds, otherwise the scale is the teachers' mean over
    seeds. Empty without teachers; NaN where the teacher gains nothing.
    """
    shown = shown or summaries
    if not all(map(shows_teachers, shown)):
        return {}
    student, teacher = _gained(summaries, shown)
    shares = {}
    for task, (gained, pictures) in student.items():
        shares[task] = ratio(gained, teacher[task][0], pictures)
    (all_student, pictures), (all_teacher, _) = joined(student), joined(teacher)
    return shares | {"mean": ratio(all_student, all_teacher, pictures)}


def gains_recovered(summaries: list[dict], shown: list[dict]) -> dict[str, float]:
    """Task -> the gain recovered, as in `recovered`, without an interval. `shown` have to show teachers."""
    student, teacher = _gained(summaries, shown)
    gained, taught = (
        {task: float(stratified_means(*rows).mean()) for task, rows in gains.items()} for gains in (student, teacher)
    )
    return {task: gained[task] / taught[task] if taught[task] > 0 else float("nan") for task in gained}


Gained = dict[str, tuple[np.ndarray, Design]]
"""Task -> gains over the base by seed and image, [S, N], and their design."""


def _gained(summaries: list[dict], shown: list[dict]) -> tuple[Gained, Gained]:
    """The gains of the students of `summaries`, and those of each task's own teacher in `shown`."""
    paired = [s["seed"] for s in summaries] == [s["seed"] for s in shown]
    student, teacher = {}, {}
    for task in summaries[0]["models"]["student"]:
        values, pictures = model_rows(summaries, "student", task)
        base, scale = model_rows(shown, "base", task)
        taught, _ = model_rows(shown, f"teacher {task}", task)
        paired_pictures(task, pictures, scale)
        student[task] = values - base, pictures
        if not paired:
            taught = taught.mean(0, keepdims=True)
        teacher[task] = taught - base, pictures
    return student, teacher
