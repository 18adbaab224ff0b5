"""What is claimed in advance: the form of a YAML file of hypotheses.

A file names lines by method and budget, so that it can be written and committed before any run exists.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator

from bench.config.bounds import Positive
from bench.config.settings import Settings, first_problem, flattened, parse_seeds, read_yaml
from bench.errors import UsageError, unknown
from bench.registry import registered
from report.lines import Line, near

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
        taught = "" if self.teacher_nfe is None else f" with teachers of {self.teacher_nfe:,} NFE"
        return f"{self.method}{options} of {self.nfe:,} NFE{taught}"


def _equal(a: float, b: float) -> bool:
    """Whether two costs count as equal; nothing has only nothing as its equal."""
    return a == b or near(a, b)


def _known_methods(name: str, *selections: object) -> None:
    """Raises ValueError for a line of a method that is not installed."""
    for selection in selections:
        if isinstance(selection, Selection) and selection.method not in registered("method"):
            raise ValueError(f"{name}: {unknown('method', selection.method, registered('method'))}")


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
        _known_methods(self.name, self.line, self.minus)
        return self

    @property
    def sign(self) -> int:
        """1 if the difference is claimed to be above, -1 if below."""
        return 1 if self.direction == "above" else -1


class Against(Settings):
    """What would count against a line although its scores are higher: a difference that is no score."""

    name: Annotated[str, Field(min_length=1)]
    claim: Annotated[str, Field(min_length=1)]
    """What counts against it, in words."""
    line: Selection
    minus: Selection
    measure: Literal["diversity", "drift", "lowest gain"]
    """Diversity within a prompt or drift from the base, both at the guidance scale of points along training, averaged
    over the tasks; or the lowest of the tasks' gains recovered, a fraction of the teachers' mean gains."""
    direction: Literal["above", "below"] = Field(validation_alias=AliasChoices("is", "direction"))
    """On which side of 0 the difference counts against the line: the 95% interval of a measure, or the lowest gain's
    value, which has no interval."""
    tasks: ClassVar[tuple[str, ...]] = ()
    """All."""

    @model_validator(mode="after")
    def _two_lines(self) -> "Against":
        _known_methods(self.name, self.line, self.minus)
        if self.minus == self.line:
            raise ValueError(f"{self.name}: it subtracts from a line the same line")
        return self


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
    equal_within: Positive | None = None
    """Lines whose difference is undecided are called equal if its 90% interval in the deciding world is within this."""
    hypotheses: Annotated[tuple[Hypothesis, ...], Field(min_length=1)]
    against: tuple[Against, ...] = ()

    @model_validator(mode="after")
    def _names(self) -> "Stated":
        if self.decided_in not in self.worlds:
            raise ValueError(f"decided_in: {self.decided_in!r} is not among worlds ({', '.join(self.worlds)})")
        names = [entry.name for entry in self.hypotheses] + [entry.name for entry in self.against]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two entries are called {min(twice)!r}")
        return self

    def seeds(self, world: str) -> list[int]:
        """The seeds of a world."""
        return parse_seeds(str(self.worlds[world]))


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
