"""Hypotheses that were stated in advance: a YAML file, and what the records say about each.

A file names lines by method and budget, so that it can be written and committed before any run exists. Each hypothesis
is decided in one world (backbone), and further worlds have to agree. Nothing is decided before every seed that the file
names has finished, because a look at the first seeds would be a choice of when to stop.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator

from bench.analysis.comparison import paired_by_seed
from bench.analysis.forgetting import by_share, recorded_at
from bench.analysis.records import Record, model_rows
from bench.analysis.stats import Design, Difference, exceeds, holm_within, joined, paired_difference
from bench.config.settings import Settings, first_problem, flattened, parse_seeds, read_yaml
from bench.errors import UsageError, unknown
from bench.registry import registered
from report.lines import Conditions, Line, Pool, apart, near

TEACHER = "teacher"
Share = Annotated[float, Field(gt=0, le=1)]


def _known_minus(given: Any) -> Any:
    if isinstance(given, str) and given != TEACHER:
        raise ValueError(f"minus is a line (method and nfe) or {TEACHER!r}, not {given!r}")
    return given


class Selection(Settings):
    """Which line is meant."""

    method: str
    nfe: Annotated[int, Field(ge=0)]
    """Training NFE per run, without teachers."""
    teacher_nfe: Annotated[int, Field(ge=0)] | None = None
    """NFE of training its teachers, all together; None: whatever it is."""
    settings: dict[str, Any] = Field(default={})
    """Settings such as params.engine or optimizer.lr that tell it from other lines of the same budget."""

    def holds(self, line: Line) -> bool:
        """Whether this is the line; budgets that end on whole updates count as equal."""
        known = flattened(line.records[0].spec)
        same = all(known.get(key) == value for key, value in self.settings.items())
        taught = self.teacher_nfe is None or _equal(line.teacher_nfe, self.teacher_nfe)
        return line.method == self.method and _equal(line.training_nfe, self.nfe) and taught and same

    def __str__(self) -> str:
        options = "".join(f", {key}={value}" for key, value in self.settings.items())
        taught = "" if self.teacher_nfe is None else f" and teachers of {self.teacher_nfe:,}"
        return f"{self.method}{options} of {self.nfe:,} NFE{taught}"


def _equal(a: float, b: float) -> bool:
    """Whether two costs count as equal; nothing has only nothing as its equal."""
    return a == b or near(a, b)


class Hypothesis(Settings):
    """One claim about a difference of headline scores."""

    name: Annotated[str, Field(min_length=1)]
    claim: Annotated[str, Field(min_length=1)]
    """The claim in words, as it is printed with the verdict."""
    family: str = ""
    """Hypotheses of one family share Holm's correction; empty for one that is tested by itself."""
    line: Selection
    minus: Annotated[Selection | Literal["teacher"] | None, BeforeValidator(_known_minus)] = None
    """The line that is subtracted, or "teacher" for each task's own teacher of the same seed."""
    at: Share | None = None
    """With `minus_at`: two points of training of the one line, as fractions of its budget."""
    minus_at: Share | None = None
    tasks: tuple[str, ...] = ()
    """Tasks over which the difference is averaged; empty: all."""
    direction: Literal["above", "below"] = Field(validation_alias=AliasChoices("is", "direction"))
    """On which side of the margin the difference is claimed to be."""
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Non-inferiority: the difference is claimed to be above -margin (or below margin), tested one-sided."""
    gate: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """With minus: teacher: the hypothesis says something only if the 95% interval of the teacher minus the base is
    above this, since a teacher that has learned nothing is matched by any student."""

    @model_validator(mode="after")
    def _one_difference(self) -> "Hypothesis":
        between_points = self.at is not None and self.minus_at is not None
        if (self.minus is None) != between_points or (self.at is None) != (self.minus_at is None):
            raise ValueError(f"{self.name}: give either minus, or both at and minus_at")
        if self.minus == self.line or (between_points and self.at == self.minus_at):
            raise ValueError(f"{self.name}: it subtracts from a line the same line")
        if self.gate is not None and self.minus != TEACHER:
            raise ValueError(f"{self.name}: gate is about teachers, so it needs minus: teacher")
        for selection in (self.line, self.minus):
            if isinstance(selection, Selection) and selection.method not in registered("method"):
                raise ValueError(f"{self.name}: {unknown('method', selection.method, registered('method'))}")
        return self

    @property
    def sign(self) -> int:
        """1 if the difference is claimed to be above, -1 if below."""
        return 1 if self.direction == "above" else -1


class Stated(Settings):
    """The hypotheses of one file."""

    title: str
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    decided_in: str
    """The backbone whose records decide."""
    worlds: Annotated[dict[str, int | str], Field(min_length=1)]
    """Backbone -> its seeds, as 0 or 0-9: those that decide, and the worlds that have to agree."""
    split: Literal["test", "validation"] = "test"
    """Prompts of the scores. All other conditions of a world's lines have to be equal (report/lines.py, Conditions)."""
    hypotheses: Annotated[tuple[Hypothesis, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names(self) -> "Stated":
        if self.decided_in not in self.worlds:
            raise ValueError(f"decided_in: {self.decided_in!r} is not among worlds ({', '.join(self.worlds)})")
        names = [hypothesis.name for hypothesis in self.hypotheses]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two hypotheses are called {min(twice)!r}")
        return self

    def seeds(self, world: str) -> list[int]:
        """The seeds of a world."""
        return parse_seeds(str(self.worlds[world]))


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
    lacking: list[str] = field(default_factory=list)
    """Why it is open."""


def read_hypotheses(path: Path) -> Stated:
    """Read and check a file. Raises UsageError if it is not valid."""
    try:
        stated = Stated.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, Stated)}") from error
    for world in stated.worlds:
        try:
            stated.seeds(world)
        except UsageError as error:
            raise UsageError(f"{path}: seeds of {world}: {str(error).removeprefix('--seeds ')}") from error
    return stated


def examine(stated: Stated, pools: list[Pool]) -> list[Finding]:
    """The finding on every hypothesis, in the order of the file.

    Raises UsageError for a task or teachers that the lines do not have, if several lines fit a selection, and if lines
    that are compared were not evaluated under the same conditions.
    """
    lines: dict[str, list[tuple[Line, Pool]]] = {}
    for world in stated.worlds:
        here = [p for p in pools if p.world.backbone == world and p.world.split == stated.split and not p.whole]
        lines[world] = apart(here)
    measured = [_measure(stated, hypothesis, lines) for hypothesis in stated.hypotheses]
    families = [h.family or f"{h.name} alone" for h in stated.hypotheses]
    # A family is corrected for all its tests, so it is complete only when all of them can be made.
    waiting = {family for family, (finding, *_) in zip(families, measured) if finding.lacking}
    claimed = holm_within([chances[0] for _, chances, _ in measured], families)
    opposite = holm_within([chances[1] for _, chances, _ in measured], families)
    found = []
    for (finding, _, passed), p, p_opposite, family in zip(measured, claimed, opposite, families):
        others = [] if finding.lacking or family not in waiting else ["another test of its family is not complete"]
        lacking = finding.lacking + others
        if not lacking:
            finding = replace(finding, p=p, p_opposite=p_opposite)
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
    # NaN, of a single seed, is not below the level.
    if finding.p < stated.level and above == {True}:
        return "holds"
    return "fails" if finding.p_opposite < stated.level and above == {False} else "undecided"


Chances = tuple[float, float]
"""p-values of the claim and of its opposite."""


def _measure(
    stated: Stated, asked: Hypothesis, lines: dict[str, list[tuple[Line, Pool]]]
) -> tuple[Finding, Chances, bool]:
    """The effects of a hypothesis in every world, the p-values in the deciding one, and whether its gate is passed."""
    effects: dict[str, Difference] = {}
    lacking: list[str] = []
    chances, passed = (float("nan"), float("nan")), True
    for world in stated.worlds:
        chosen = _chosen(asked, lines[world], stated.seeds(world))
        values = _values(asked, chosen)
        lacking += [f"{world}: {text}" for text in chosen.lacking]
        effects[world] = Difference.unknown() if values is None else _effect(*values)
        if world == stated.decided_in and values is not None:
            chances = _chances(asked, *values)
            passed = asked.gate is None or _effect(*_over_tasks(asked, chosen, TEACHER, "base")).low > asked.gate
    return Finding(asked, effects, "open", lacking=lacking), chances, passed


Values = tuple[np.ndarray, Design]
"""Differences [S, N] and their design."""


def _effect(values_SN: np.ndarray, pictures: Design) -> Difference:
    return paired_difference(values_SN, np.zeros(values_SN.shape[1]), pictures)


def _chances(asked: Hypothesis, values_SN: np.ndarray, pictures: Design) -> Chances:
    """p-values of the claim and its opposite; NaN for a single seed, which says nothing about the method.

    Without a margin both are two-sided, and the side is told by the difference. With one both are one-sided.
    """
    if len(values_SN) < 2:
        return float("nan"), float("nan")
    if asked.margin:
        claimed = exceeds(asked.sign * values_SN, pictures, -asked.margin)
        return claimed, exceeds(-asked.sign * values_SN, pictures, asked.margin)
    return (_effect(values_SN, pictures).p,) * 2


@dataclass
class Matched:
    """The runs of one world that a hypothesis is about, by the seeds that all its lines have."""

    first: list[Record] = field(default_factory=list)
    second: list[Record] = field(default_factory=list)
    """Those of `minus`, if that is a line."""
    lacking: list[str] = field(default_factory=list)


def _chosen(asked: Hypothesis, lines: list[tuple[Line, Pool]], seeds: list[int]) -> Matched:
    """Raises UsageError for several lines that fit, other conditions, and tasks or teachers that runs do not have."""
    found: list[dict[int, Record]] = []
    worlds: list[Conditions] = []
    lacking: list[str] = []
    for selection in (asked.line, asked.minus):
        if not isinstance(selection, Selection):
            continue
        fitting = [(line, pool) for line, pool in lines if selection.holds(line)]
        if len(fitting) > 1:
            names = " and ".join(f"{line.label} ({pool.place})" for line, pool in fitting[:2])
            raise UsageError(f"{asked.name}: several lines are {selection}: {names}; tell them apart by settings")
        worlds += [pool.world for _, pool in fitting]
        records = {r.summary["seed"]: r for line, _ in fitting for r in line.records if r.summary["seed"] in seeds}
        missing = [str(seed) for seed in seeds if seed not in records]
        if missing:
            lacking.append(f"{selection} lacks {'seed' if len(missing) == 1 else 'seeds'} {', '.join(missing)}")
        found.append(records)
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
    values, pictures, _ = paired_by_seed(chosen.first, chosen.second, _tasks(asked, chosen))
    return values, pictures


def _tasks(asked: Hypothesis, chosen: Matched) -> tuple[str, ...]:
    return asked.tasks or tuple(chosen.first[0].summary["models"]["student"])


def _over_tasks(asked: Hypothesis, chosen: Matched, model: str, minus: str) -> Values:
    """Differences of two models of the same runs; "teacher" is each task's own."""
    summaries = [record.summary for record in chosen.first]
    rows = {}
    for task in _tasks(asked, chosen):
        own = [f"{TEACHER} {task}" if name == TEACHER else name for name in (model, minus)]
        values, pictures = model_rows(summaries, own[0], task)
        rows[task] = values - model_rows(summaries, own[1], task)[0], pictures
    return joined(rows)


def _between_points(asked: Hypothesis, chosen: Matched) -> Values | None:
    """Differences of two points of training; None if one was not evaluated, which is then noted as lacking."""
    rows = {}
    for task in _tasks(asked, chosen):
        complete, pictures = by_share([record.evaluations for record in chosen.first], task)
        late, early = (recorded_at(complete, share) if complete else None for share in (asked.at, asked.minus_at))
        if late is None or early is None:
            chosen.lacking.append(f"{asked.line} was not evaluated at {asked.minus_at:.0%} and {asked.at:.0%}")
            return None
        rows[task] = complete[late] - complete[early], pictures
    return joined(rows)
