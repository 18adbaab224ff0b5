"""Hypotheses that were stated in advance: a YAML file, and what the records say about each.

A file names lines by method and budget, so that it can be written and committed before any run exists. Each hypothesis
is decided in one world (backbone), and further worlds have to agree in sign. Nothing is decided before every seed that
the file names has finished, because a look at the first seeds would be a choice of when to stop.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, Field, ValidationError, model_validator

from bench.analysis.comparison import paired_by_seed
from bench.analysis.forgetting import by_share, recorded_at
from bench.analysis.records import Record, model_rows
from bench.analysis.stats import Design, Difference, exceeds, holm_within, joined, paired_difference
from bench.config.settings import Settings, first_problem, parse_seeds, read_yaml
from bench.errors import UsageError, unknown
from report.lines import Line, Pool, apart, near

TEACHER = "teacher"
Share = Annotated[float, Field(gt=0, le=1)]


class Selection(Settings):
    """Which line is meant."""

    method: str
    nfe: Annotated[int, Field(ge=0)]
    """Training NFE per run, without teachers."""
    params: dict[str, Any] = Field(default={})
    """Options of the method that tell it from other lines of the same budget."""

    def holds(self, line: Line) -> bool:
        """Whether this is the line; budgets that end on whole updates count as equal."""
        params = line.records[0].spec.get("params", {})
        same = all(params.get(key) == value for key, value in self.params.items())
        return line.method == self.method and near(line.training_nfe, self.nfe) and same

    def __str__(self) -> str:
        options = "".join(f", {key}={value}" for key, value in self.params.items())
        return f"{self.method}{options} of {self.nfe:,} NFE"


class Hypothesis(Settings):
    """One claim about a difference of headline scores."""

    name: str
    claim: str
    """The claim in words, as it is printed with the verdict."""
    family: str = ""
    """Hypotheses of one family share Holm's correction; empty for one that is tested by itself."""
    line: Selection
    minus: Selection | Literal["teacher"] | None = None
    """The line that is subtracted, or "teacher" for each task's own teacher of the same seed."""
    at: Share | None = None
    """With `minus_at`: two points of training of the one line, as fractions of its budget."""
    minus_at: Share | None = None
    tasks: tuple[str, ...] = ()
    """Tasks over which the difference is averaged; empty: all."""
    direction: Literal["above", "below"] = Field(validation_alias=AliasChoices("is", "direction"))
    """On which side of the margin the difference is claimed to be."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Non-inferiority: the difference is claimed to be above -margin (or below margin), tested one-sided."""

    @model_validator(mode="after")
    def _one_difference(self) -> "Hypothesis":
        between_points = self.at is not None and self.minus_at is not None
        if (self.minus is None) != between_points or (self.at is None) != (self.minus_at is None):
            raise ValueError(f"{self.name}: give either minus, or both at and minus_at")
        return self


class Stated(Settings):
    """The hypotheses of one file."""

    title: str
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    decided_in: str
    """The backbone whose records decide."""
    worlds: Annotated[dict[str, int | str], Field(min_length=1)]
    """Backbone -> its seeds, as 0 or 0-9: those that decide, and the worlds that have to agree."""
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
    """holds, fails, undecided or open."""
    p: float = float("nan")
    """Of the deciding world, after Holm's correction within the family; one-sided with a margin."""
    lacking: list[str] = field(default_factory=list)
    """Why it is open."""


def read_hypotheses(path: Path) -> Stated:
    """Read and check a file. Raises UsageError if it is not valid."""
    try:
        stated = Stated.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error, Stated)}") from error
    for world in stated.worlds:
        stated.seeds(world)
    return stated


def examine(stated: Stated, pools: list[Pool]) -> list[Finding]:
    """The finding on every hypothesis, in the order of the file.

    Raises UsageError for a task that the lines do not have, and if several lines fit a selection.
    """
    lines: dict[str, list[tuple[Line, Pool]]] = {}
    for world in stated.worlds:
        lines[world] = apart([pool for pool in pools if pool.world.backbone == world and not pool.whole])
    measured = [_measure(stated, hypothesis, lines) for hypothesis in stated.hypotheses]
    families = [h.family or f"{h.name} alone" for h in stated.hypotheses]
    chances = [chance for _, chance in measured]
    # A family is corrected for all its tests, so it is complete only when all of them can be made.
    waiting = {family for family, (finding, _) in zip(families, measured) if finding.lacking}
    found = []
    for (finding, _), p, family in zip(measured, holm_within(chances, families), families):
        others = [] if finding.lacking or family not in waiting else ["another test of its family is not complete"]
        finding = replace(finding, p=p, lacking=finding.lacking + others)
        found.append(replace(finding, verdict=_verdict(finding, stated)))
    return found


def _verdict(finding: Finding, stated: Stated) -> str:
    if finding.lacking:
        return "open"
    asked, effect = finding.hypothesis, finding.effects[stated.decided_in]
    edge = -asked.margin
    sign = 1 if asked.direction == "above" else -1
    ends = sorted(sign * end for end in (effect.low, effect.high))
    if ends[1] < edge:
        return "fails"
    agrees = all(sign * other.value > edge for other in finding.effects.values())
    # NaN, of an effect without an interval, is not below the level.
    return "holds" if finding.p < stated.level and agrees else "undecided"


def _measure(
    stated: Stated, asked: Hypothesis, lines: dict[str, list[tuple[Line, Pool]]]
) -> tuple[Finding, float]:
    """The effects of a hypothesis in every world, and the p-value in the deciding one."""
    effects: dict[str, Difference] = {}
    lacking: list[str] = []
    chance = float("nan")
    for world in stated.worlds:
        seeds = stated.seeds(world)
        values, lack = _values(asked, lines[world], seeds)
        lacking += [f"{world}: {text}" for text in lack]
        effects[world] = Difference.unknown() if values is None else _effect(*values)
        if world == stated.decided_in and values is not None:
            chance = _chance(asked, *values)
    return Finding(asked, effects, "open", lacking=lacking), chance


Values = tuple[np.ndarray, Design]
"""Differences [S, N] and their design."""


def _effect(values_SN: np.ndarray, pictures: Design) -> Difference:
    return paired_difference(values_SN, np.zeros(values_SN.shape[1]), pictures)


def _chance(asked: Hypothesis, values_SN: np.ndarray, pictures: Design) -> float:
    """p-value of the deciding test; NaN for a single seed, which says nothing about the method."""
    if len(values_SN) < 2:
        return float("nan")
    if asked.margin:
        sign = 1 if asked.direction == "above" else -1
        return exceeds(sign * values_SN, pictures, -asked.margin)
    return _effect(values_SN, pictures).p


def _values(asked: Hypothesis, lines: list[tuple[Line, Pool]], seeds: list[int]) -> tuple[Values | None, list[str]]:
    """The differences by seed and prompt, None without any, and what is missing."""
    found, lacking = [], []
    for selection in (asked.line, asked.minus):
        if isinstance(selection, Selection):
            fitting = [line for line, _ in lines if selection.holds(line)]
            if len(fitting) > 1:
                names = " and ".join(line.label for line in fitting[:2])
                raise UsageError(f"{asked.name}: several lines are {selection}: {names}; tell them apart by params")
            records = {r.summary["seed"]: r for line in fitting for r in line.records if r.summary["seed"] in seeds}
            missing = [str(seed) for seed in seeds if seed not in records]
            if missing:
                lacking.append(f"{selection} lacks {'seed' if len(missing) == 1 else 'seeds'} {', '.join(missing)}")
            found.append(records)
    common = [seed for seed in seeds if all(seed in records for records in found)]
    if not common:
        return None, lacking
    first = [found[0][seed] for seed in common]
    known = tuple(first[0].summary["models"]["student"])
    for task in asked.tasks:
        if task not in known:
            raise unknown(f"task of {asked.name}:", task, known)
    tasks = asked.tasks or known
    if asked.at is not None and asked.minus_at is not None:
        return _between_points(asked, first, tasks, lacking)
    if asked.minus == TEACHER:
        rows = {task: _beside_teacher([r.summary for r in first], task) for task in tasks}
        return joined(rows), lacking
    second = [found[1][seed] for seed in common]
    values, pictures, _ = paired_by_seed(first, second, tasks)
    return (values, pictures), lacking


def _beside_teacher(summaries: list[dict], task: str) -> Values:
    student, pictures = model_rows(summaries, "student", task)
    teacher, _ = model_rows(summaries, f"{TEACHER} {task}", task)
    return student - teacher, pictures


def _between_points(
    asked: Hypothesis, records: list[Record], tasks: tuple[str, ...], lacking: list[str]
) -> tuple[Values | None, list[str]]:
    """Differences of two points of training."""
    rows = {}
    for task in tasks:
        complete, pictures = by_share([record.evaluations for record in records], task)
        late, early = (recorded_at(complete, share) if complete else None for share in (asked.at, asked.minus_at))
        if late is None or early is None:
            return None, [*lacking, f"{asked.line} was not evaluated at {asked.minus_at:.0%} and {asked.at:.0%}"]
        rows[task] = complete[late] - complete[early], pictures
    return joined(rows), lacking
