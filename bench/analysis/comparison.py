"""What a comparison shows: every variant's scores, gains, chances and costs, from the records of its runs."""

from dataclasses import dataclass, replace

import numpy as np

from bench.analysis.forgetting import score_matrix
from bench.analysis.overoptimisation import GOLD
from bench.analysis.records import Record, model_rows, paired_pictures, recovered, score, shows_teachers
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
"""Share of the best teacher's score that counts as reaching it."""
MARGIN = 0.1
"""Share of the teachers' mean gain over the base up to which two lines count as equivalent: the tenth by which a
student may miss its teacher and still match it."""
STRICTER = ("strict", GOLD)
"""Metrics beside a headline, which could hide a loss of them: GenEval's exact counts, the utility behind a learned
reward."""
PRIMARY = {"multi_reward": {"engine": "nft"}, "cascade": {"engine": "nft"}, "opd_ppo": {"advantage": "log_ratio"}}
"""The comparisons that the paper's claims are about: analytic OPD against joint RL, a cascade and PPO-style OPD, each
with these settings of its recipe. They are a family of their own in Holm's correction, whatever else a table holds; all
other lines are exploratory, and another family."""
PRIMARY_FAMILY, EXPLORATORY = "primary", "exploratory"


@dataclass(frozen=True)
class Goal:
    """A task's scale (NaN where no run has teachers)."""

    base: float
    """At its best guidance."""
    teacher: float
    """The task's own, mean over its seeds."""
    best: float
    """The best of all tasks' teachers."""

    def recovered(self, score: np.ndarray | float):
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
    worst: Estimate
    """The lowest share of a teacher's gain among the tasks, which a mean can hide."""
    worst_task: str
    beside: dict[str, Estimate]
    """ "task: metric" -> the metrics of STRICTER that the records hold."""
    gain_iqm: Estimate
    """Interquartile mean of the share over tasks and seeds."""
    above_reference: Estimate
    """Probability that a run of this variant has a higher mean score than one of the reference."""
    against_reference: Difference
    """Difference of mean scores to the reference, paired by seed and prompt; p adjusted within the family by Holm."""
    family: str
    """primary or exploratory; empty for the reference."""
    margin: float
    """Difference of mean scores up to which a line is equivalent to the reference; NaN without teachers."""
    p_equivalent: float
    """Of two one-sided tests that the difference is within the margin, adjusted within the family by Holm."""
    time_to_target: float
    """Training NFE until the seeds' mean is at TARGET of the best teacher in every task; infinity if never, NaN
    without teachers."""
    seeds_at_target: int
    """Seeds that are there by themselves at some recorded point."""
    training_nfe: float
    teacher_nfe: float
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
    """A Standing per variant, in the order given. `teacher_cost` is training NFE by task."""
    taught = (rs for rs in groups.values() if rs and all(shows_teachers(r.summary) for r in rs))
    shown = [r.summary for r in next(taught, [])]
    scale = goals(shown, tasks)
    lines = [
        _standing(label, records, groups[reference], tasks, scale, shown, teacher_cost)
        for label, records in groups.items()
        if records
    ]
    families = [s.family for s in lines]
    gaps = holm_within([float("nan") if s.label == reference else s.against_reference.p for s in lines], families)
    same = holm_within([s.p_equivalent for s in lines], families)
    return [
        replace(s, against_reference=replace(s.against_reference, p=p), p_equivalent=q) if s.label != reference else s
        for s, p, q in zip(lines, gaps, same)
    ]


def family(records: list[Record], reference: list[Record]) -> str:
    """Which of the two families the comparison of a line with the reference is in; empty for the reference itself."""
    if records is reference:
        return ""
    method, params = records[0].summary.get("method", ""), records[0].spec.get("params", {})
    wanted = PRIMARY.get(method) if reference[0].summary.get("method") == "opd_analytic" else None
    primary = wanted is not None and all(params.get(key, value) == value for key, value in wanted.items())
    return PRIMARY_FAMILY if primary else EXPLORATORY


def _standing(label, records, reference, tasks, scale, shown, teacher_cost) -> Standing:
    scores = np.array([[score(r.summary["models"]["student"][t]) for t in tasks] for r in records])
    shares = np.stack([scale[t].recovered(scores[:, i]) for i, t in enumerate(tasks)], 1)
    other = np.array([[score(r.summary["models"]["student"][t]) for t in tasks] for r in reference])
    if (scores == scores[0]).all():  # what draws nothing at random has one result, however many seeds
        scores, shares = scores[:1], shares[:1]
    has_teachers = bool(records[0].summary["teachers"])
    gains = recovered([r.summary for r in records], shown)
    by_task = {task: share for task, share in gains.items() if task != "mean" and not np.isnan(share.value)}
    worst_task = min(by_task, key=lambda task: by_task[task].value, default="")
    margin = MARGIN * float(np.mean([goal.teacher - goal.base for goal in scale.values()]))
    when, reaching = _to_target(records, tasks, scale)
    return Standing(
        label=label,
        seeds=len(records),
        tasks={t: estimate(*model_rows([r.summary for r in records], "student", t)) for t in tasks},
        gain=gains.get("mean", Estimate.unknown()),
        worst=by_task.get(worst_task, Estimate.unknown()),
        worst_task=worst_task,
        beside=metrics_beside([r.summary for r in records], dict.fromkeys(tasks, "student")),
        gain_iqm=interquartile_mean(shares),
        above_reference=probability_of_improvement(scores.mean(1), other.mean(1)),
        against_reference=against(records, reference, tasks),
        family=family(records, reference),
        margin=margin if margin > 0 else float("nan"),
        p_equivalent=_equivalence(records, reference, tasks, margin),
        time_to_target=when,
        seeds_at_target=reaching,
        training_nfe=float(np.mean([r.summary["cost"]["evaluations"].get("training", 0) for r in records])),
        teacher_nfe=sum(teacher_cost.get(t, float("nan")) for t in tasks) if has_teachers else 0.0,
    )


def against(records: list[Record], reference: list[Record], tasks: tuple[str, ...]) -> Difference:
    """Difference of the mean over tasks; common seeds only. One seed says nothing of the methods: p is NaN then."""
    values, pictures, seeds = _gaps(records, reference, tasks)
    if not seeds:
        return Difference.unknown()
    difference = paired_difference(values, np.zeros(values.shape[1]), pictures)
    tested = seeds > 1 and values.any()  # the same results to the last bit are no test
    return difference if tested else replace(difference, p=float("nan"))


def _equivalence(records: list[Record], reference: list[Record], tasks: tuple[str, ...], margin: float) -> float:
    """p of two one-sided tests; NaN without a margin, and where `against` tests nothing."""
    values, pictures, seeds = _gaps(records, reference, tasks)
    if not (margin > 0 and seeds > 1 and values.any()):
        return float("nan")
    return equivalence(values, np.zeros(values.shape[1]), pictures, margin)


def _gaps(records: list[Record], reference: list[Record], tasks: tuple[str, ...]) -> tuple[np.ndarray, Design, int]:
    """Differences of all tasks' rows [S, N] over the common seeds, their design, and how many seeds there are."""
    mine = {r.summary["seed"]: r.summary for r in records}
    theirs = {r.summary["seed"]: r.summary for r in reference}
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return np.zeros((0, 0)), Design(np.array([])), 0
    gaps = {}
    for task in tasks:
        a, pictures = model_rows([mine[s] for s in seeds], "student", task)
        b, others = model_rows([theirs[s] for s in seeds], "student", task)
        gaps[task] = (a - b, paired_pictures(task, pictures, others))
    return *joined(gaps), len(seeds)


def metrics_beside(summaries: list[dict], models: dict[str, str]) -> dict[str, Estimate]:
    """ "task: metric" -> the metrics of STRICTER that every summary holds; `models` names each task's model."""
    found = {}
    for task, model in models.items():
        rows = [s["models"][model][task]["rows"] for s in summaries]
        for metric in (metric for metric in STRICTER if all(metric in row for row in rows)):
            found[f"{task}: {metric}"] = estimate(*model_rows(summaries, model, task, metric))
    return found


def _to_target(records: list[Record], tasks: tuple[str, ...], scale: dict[str, Goal]) -> tuple[float, int]:
    """When the seeds' mean is at the target of every task, and how many seeds are by themselves, sooner or later."""
    if any(np.isnan(goal.best) for goal in scale.values()):
        return float("nan"), 0
    curves = [score_matrix(r.evaluations, tasks) for r in records]
    shares = sorted(set.intersection(*(set(points) for points, _ in curves)))
    if not shares:
        return float("nan"), 0
    scores_SKT = np.stack([matrix[[points.index(share) for share in shares]] for points, matrix in curves])
    targets_T = np.array([scale[task].target for task in tasks])
    reaching = int((scores_SKT >= targets_T).all(-1).any(-1).sum())
    reached_K = (scores_SKT.mean(0) >= targets_T).all(-1)
    if not reached_K.any():
        return float("inf"), reaching
    budget = np.mean([r.summary["cost"]["evaluations"].get("training", 0) for r in records])
    return float(shares[int(reached_K.argmax())] * budget), reaching
