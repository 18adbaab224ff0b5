"""Hypotheses that were stated in advance (report/hypotheses_file.py), and what the records say about each.

Each hypothesis is decided in one world (backbone), and further worlds have to agree. Nothing is decided before every
seed that the file names has finished, because a look at the first seeds would be a choice of when to stop.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bench.analysis.comparison import paired_by_seed
from bench.analysis.forgetting import by_share, recorded_at
from bench.analysis.records import Record, gains_recovered, model_rows, paired_pictures, shows_teachers
from bench.analysis.stats import Design, Difference, equivalence, exceeds, holm_within, joined, paired_difference
from bench.config.settings import ranges
from bench.errors import UsageError, unknown
from report.hypotheses_file import TEACHER, Against, Hypothesis, Selection, Stated
from report.lines import Conditions, Line, Pool, apart


@dataclass(frozen=True)
class Finding:
    """What the records say about one hypothesis."""

    hypothesis: Hypothesis
    effects: dict[str, Difference]
    """World -> difference with its 95% interval."""
    verdict: str
    """holds, fails, undecided, uninformative (its gate is not passed) or open."""
    p: float = float("nan")
    """Of the claim in the deciding world, after Holm's correction within the family; one-sided with a margin."""
    p_opposite: float = float("nan")
    """The same of the opposite claim: that the difference is on the other side of the boundary."""
    p_equal: float = float("nan")
    """Of two one-sided tests in the deciding world that the difference is within `equal_within`, without correction;
    below .05 where the 90% interval is within it."""
    gains: dict[str, float] = field(default_factory=dict)
    """World -> the difference in the mean over tasks of the gain recovered, for two lines on several tasks."""
    lacking: list[str] = field(default_factory=list)
    """Why it is open."""

    @property
    def weighted(self) -> list[str]:
        """Worlds in which the mean gain recovered differs in the other direction than the mean score."""
        return [world for world, gain in self.gains.items() if gain * self.effects[world].value < 0]


Lines = dict[str, list[tuple[Line, Pool]]]
"""World -> its lines."""


def lines_of(stated: Stated, pools: list[Pool]) -> Lines:
    """The lines of the worlds of a file."""
    here = [p for p in pools if p.world.split == stated.split and not p.whole]
    return {world: apart([p for p in here if p.world.backbone == world]) for world in stated.worlds}


def examine(stated: Stated, pools: list[Pool]) -> list[Finding]:
    """The finding on every hypothesis, in the order of the file.

    Raises UsageError for a task or teachers that the lines do not have, if several lines fit a selection, and if lines
    that are compared were not evaluated under the same conditions.
    """
    lines = lines_of(stated, pools)
    measured = [_measure(stated, hypothesis, lines) for hypothesis in stated.hypotheses]
    families = [h.family or f"{h.name} alone" for h in stated.hypotheses]
    # A family is corrected for all its tests, so it is complete only when all of them can be made.
    waiting = {family for family, (finding, *_) in zip(families, measured) if finding.lacking}
    claimed = holm_within([chances.claim for _, chances, _ in measured], families)
    opposite = holm_within([chances.opposite for _, chances, _ in measured], families)
    found = []
    for (finding, chances, passed), p, p_opposite, family in zip(measured, claimed, opposite, families):
        others = [] if finding.lacking or family not in waiting else ["another test of its family is not complete"]
        lacking = finding.lacking + others
        if not lacking:
            finding = replace(finding, p=p, p_opposite=p_opposite, p_equal=chances.equal)
        finding = replace(finding, lacking=lacking)
        found.append(replace(finding, verdict=_verdict(finding, stated, passed)))
    return found


def _verdict(finding: Finding, stated: Stated, passed: bool) -> str:
    """Both verdicts need the same: significance in the deciding world after correction, and all worlds on that side."""
    if finding.lacking:
        return "open"
    if not passed:
        return "uninformative"
    asked = finding.hypothesis
    above = {asked.sign * effect.value > -asked.margin for effect in finding.effects.values()}
    # NaN, of differences without any spread, is not below the level.
    if finding.p < stated.level and above == {True}:
        return "holds"
    return "fails" if finding.p_opposite < stated.level and above == {False} else "undecided"


class Chances(NamedTuple):
    """p-values, not corrected."""

    claim: float = float("nan")
    opposite: float = float("nan")
    equal: float = float("nan")


def _measure(stated: Stated, asked: Hypothesis, lines: Lines) -> tuple[Finding, Chances, bool]:
    """The effects of a hypothesis in every world, the p-values in the deciding one, and whether its gate is passed."""
    effects: dict[str, Difference] = {}
    lacking: list[str] = []
    gains: dict[str, float] = {}
    chances, passed = Chances(), True
    for world in stated.worlds:
        chosen = matched(asked, lines[world], stated.seeds(world))
        values = _values(asked, chosen)
        lacking += [f"{world}: {text}" for text in chosen.lacking]
        effects[world] = Difference.unknown() if values is None else _effect(*values)
        if gained := task_gains(asked, chosen):
            first, second = (np.mean(list(by_task.values())) for by_task in gained)
            gains[world] = float(first - second)
        if world == stated.decided_in and values is not None:
            if len(stated.seeds(world)) == 1:
                lacking.append(f"{world}: a single seed says nothing about a method")
            chances = _chances(stated, asked, *values)
            passed = asked.gate is None or _effect(*_over_tasks(asked, chosen, TEACHER, "base")).low > asked.gate
    return Finding(asked, effects, "open", gains=gains, lacking=lacking), chances, passed


Values = tuple[np.ndarray, Design]
"""Differences [S, N] and their design."""


def _effect(values_SN: np.ndarray, pictures: Design) -> Difference:
    return paired_difference(values_SN, np.zeros(values_SN.shape[1]), pictures)


def _chances(stated: Stated, asked: Hypothesis, values_SN: np.ndarray, pictures: Design) -> Chances:
    """p-values of the claim, of its opposite, and, for two lines, of equality.

    Without a margin the first two are two-sided, and the side is told by the difference. With one they are one-sided.
    """
    equal = float("nan")
    if stated.equal_within and isinstance(asked.minus, Selection):
        equal = equivalence(values_SN, np.zeros(values_SN.shape[1]), pictures, stated.equal_within)
    if asked.margin:
        claimed = exceeds(asked.sign * values_SN, pictures, -asked.margin)
        return Chances(claimed, exceeds(-asked.sign * values_SN, pictures, asked.margin), equal)
    p = _effect(values_SN, pictures).p
    return Chances(p, p, equal)


@dataclass
class Matched:
    """The runs of one world that an entry of the file is about, by the seeds that all its lines have."""

    first: list[Record] = field(default_factory=list)
    second: list[Record] = field(default_factory=list)
    """Those of `minus`, if that is a line."""
    lacking: list[str] = field(default_factory=list)


def matched(asked: Hypothesis | Against, lines: list[tuple[Line, Pool]], seeds: list[int]) -> Matched:
    """The runs of an entry's lines, paired by seed.

    Raises UsageError for several lines that fit, other conditions, and tasks or teachers that runs do not have.
    """
    found: list[dict[int, Record]] = []
    worlds: list[Conditions] = []
    absent: dict[str, list[str]] = {}
    for selection in (asked.line, asked.minus):
        if not isinstance(selection, Selection):
            continue
        fitting = [(line, pool) for line, pool in lines if selection.holds(line)]
        if len(fitting) > 1:
            names = " and ".join(f"{line.label} ({pool.place})" for line, pool in fitting[:2])
            raise UsageError(f"{asked.name}: several lines are {selection}: {names}; tell them apart by settings")
        worlds += [pool.world for _, pool in fitting]
        records = {r.summary["seed"]: r for line, _ in fitting for r in line.records if r.summary["seed"] in seeds}
        missing = [seed for seed in seeds if seed not in records]
        if missing:
            text = f"{'seed' if len(missing) == 1 else 'seeds'} {ranges(missing)}"
            absent.setdefault(text, []).append(str(selection))
        found.append(records)
    lacking = [f"{' and '.join(names)} {'lack' if names[1:] else 'lacks'} {text}" for text, names in absent.items()]
    for one, other in pairwise(worlds):
        differ = [name for name in one._fields if getattr(one, name) != getattr(other, name)]
        if differ:
            raise UsageError(f"{asked.name}: its lines were evaluated under other conditions: {', '.join(differ)}")
    common = [seed for seed in seeds if all(seed in records for records in found)]
    first, *second = ([records[seed] for seed in common] for records in found)
    chosen = Matched(first, second[0] if second else [], lacking)
    for record in chosen.first:
        models = record.summary["models"]
        for task in asked.tasks:
            if task not in models["student"]:
                raise unknown(f"task of {asked.name}:", task, models["student"])
        without = [task for task in asked.tasks or models["student"] if f"{TEACHER} {task}" not in models]
        if asked.minus == TEACHER and without:
            raise UsageError(f"{asked.name}: {asked.line} has no teacher of {', '.join(without)}")
    return chosen


def _values(asked: Hypothesis, chosen: Matched) -> Values | None:
    """The differences by seed and prompt; None without any."""
    if not chosen.first:
        return None
    if asked.at is not None and asked.minus_at is not None:
        return _between_points(asked, chosen)
    if asked.minus == TEACHER:
        return _over_tasks(asked, chosen, "student", TEACHER)
    values, pictures, _ = paired_by_seed(chosen.first, chosen.second, tasks_of(asked, chosen))
    return values, pictures


def tasks_of(asked: Hypothesis | Against, chosen: Matched) -> tuple[str, ...]:
    """The tasks that an entry is about. There has to be a run."""
    return asked.tasks or tuple(chosen.first[0].summary["models"]["student"])


def task_gains(asked: Hypothesis | Against, chosen: Matched) -> tuple[dict[str, float], dict[str, float]] | None:
    """Task -> gain recovered, of both lines: their gain over the base divided by that of the task's own teacher.

    The teachers are those of the line that has them, averaged over seeds. None without teachers or a second line, and
    for a single task, whose gains differ as its scores do.
    """
    lines = [[record.summary for record in records] for records in (chosen.first, chosen.second)]
    shown = next((line for line in lines if line and all(map(shows_teachers, line))), None)
    if not all(lines) or shown is None or len(tasks_of(asked, chosen)) == 1:
        return None
    first, second = (gains_recovered(line, shown) for line in lines)
    tasks = tasks_of(asked, chosen)
    return {task: first[task] for task in tasks}, {task: second[task] for task in tasks}


def _over_tasks(asked: Hypothesis, chosen: Matched, model: str, minus: str) -> Values:
    """Differences of two models of the same runs; "teacher" is each task's own."""
    summaries = [record.summary for record in chosen.first]
    rows = {}
    for task in tasks_of(asked, chosen):
        own = [f"{TEACHER} {task}" if name == TEACHER else name for name in (model, minus)]
        values, pictures = model_rows(summaries, own[0], task)
        others, theirs = model_rows(summaries, own[1], task)
        rows[task] = values - others, paired_pictures(task, pictures, theirs)
    return joined(rows)


def _between_points(asked: Hypothesis, chosen: Matched) -> Values | None:
    """Differences of two points of training; None if one was not evaluated, which is then noted as lacking."""
    rows = {}
    for task in tasks_of(asked, chosen):
        complete, pictures = by_share([record.evaluations for record in chosen.first], task)
        late, early = (recorded_at(complete, share) if complete else None for share in (asked.at, asked.minus_at))
        if late is None or early is None:
            chosen.lacking.append(f"{asked.line} was not evaluated at {asked.minus_at:.0%} and {asked.at:.0%}")
            return None
        if late == early:
            chosen.lacking.append(f"{asked.line} has one evaluation for both {asked.minus_at:.0%} and {asked.at:.0%}")
            return None
        rows[task] = complete[late] - complete[early], pictures
    return joined(rows)
