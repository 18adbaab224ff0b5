"""Schemas of the records that the report reads; a file that does not match is reported as damaged."""

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from bench.analysis.metric_names import is_along, is_final, is_measure

Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
LARGEST = 2**63 - 1
"""Largest integer of numpy's int64."""
MOST = 1e100
"""Largest magnitude of a score; squares of larger ones overflow."""
Interval = Annotated[list[float], Field(min_length=3, max_length=3)]
Text = Annotated[str, Field(max_length=100_000)]


class Part(BaseModel):
    """Base of all record parts: strict types, further keys allowed."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=True)


class ScoreRecord(Part):
    """Scores of one model on one task."""

    task: Text
    headline: Text
    strata: Annotated[list, Field(min_length=1)]
    rows: dict[str, list]
    prompts: list | None = None
    """Index of each image's prompt; the first records had none."""

    def is_shown(self, metric: str) -> bool:
        """Whether the report uses a metric beside the headline; others are not read."""
        return is_final(metric)

    @model_validator(mode="after")
    def _whole(self) -> "ScoreRecord":
        # In numpy instead of pydantic, because a results folder has millions of values.
        if set(map(type, self.strata)) != {str}:
            raise ValueError(f"{self.task} has strata that are not text")
        if self.headline not in self.rows:
            raise ValueError(f"{self.task} has no rows for its headline {self.headline}")
        if self.prompts is not None and len(self.prompts) != len(self.strata):
            raise ValueError(f"{self.task} has {len(self.prompts)} prompt indices for {len(self.strata)} images")
        if set(map(type, self.prompts or [])) - {int}:
            raise ValueError(f"{self.task} has prompt indices that are not integers")
        if self.prompts and not 0 <= min(self.prompts) <= max(self.prompts) <= LARGEST:
            raise ValueError(f"{self.task} has prompt indices that are negative or too large")
        for name, values in self.rows.items():
            if not (name == self.headline or self.is_shown(name)):
                continue
            if len(values) != len(self.strata):
                raise ValueError(f"{self.task} has {len(values)} values of {name} for {len(self.strata)} images")
            # Types are compared exactly because a bool is an int. NaN fails the comparison of magnitudes.
            known = [value for value in values if value is not None] if is_measure(name) else values
            numeric = set(map(type, known)) <= {int, float}
            if not numeric or not (abs(np.array(known, np.float64)) <= MOST).all():
                raise ValueError(f"{self.task} has values of {name} that are not numbers, or too large for scores")
        return self


class Point(ScoreRecord):
    """One held-out evaluation along training."""

    share: Annotated[float, Field(ge=0, le=1)]

    def is_shown(self, metric: str) -> bool:
        """Whether the report uses a metric along training beside the headline."""
        return is_along(metric)


class CostRecord(Part):
    """NFE (`evaluations`) and seconds of a run by purpose."""

    evaluations: dict[str, Count]
    seconds: dict[str, Count]
    backward: dict[str, Count] = Field(default={})
    peak_bytes: dict[Literal["host", "device"], Annotated[int, Field(gt=0, le=LARGEST)]] = Field(default={})


class TeacherRecord(Part):
    """What a summary says about one teacher."""

    evaluations: Count | None = None


class Summary(Part):
    """summary.json of a run: its cost, its teachers and the scores of all models."""

    method: Text
    seed: int
    cost: CostRecord
    teachers: dict[str, TeacherRecord]
    models: dict[str, dict[str, ScoreRecord]]
    along: dict[str, dict[str, ScoreRecord]] = {}
    """Where `models` are at chosen guidance scales: the scores with which those along training are compared."""
    pictures: dict[str, dict[str, Text]] = {}
    remarks: list[Text] = []
    """What its method warned about."""

    @model_validator(mode="after")
    def _shows(self) -> "Summary":
        student = self.models.get("student")
        if not student:
            raise ValueError("models has no student")
        if self.along and self.along.keys() != self.models.keys():
            raise ValueError("along does not have the same models as models")
        for name, rows in [*self.models.items(), *self.along.items()]:
            if rows.keys() != student.keys():
                raise ValueError(f"models.{name} does not have the same tasks as the student")
            for task, row in rows.items():
                if row.strata != student[task].strata or row.headline != student[task].headline:
                    raise ValueError(f"models.{name} has other prompts or another headline for {task} than the student")
                # Older records have no prompt indices and agree with every model.
                own, theirs = row.prompts, student[task].prompts
                if None not in (own, theirs) and own != theirs:
                    raise ValueError(f"models.{name} has other prompts for {task} than the student")
        return self


class HeldOut(Part):
    """How a run was evaluated."""

    split: Text
    steps: int
    guidance: Number


class SamplerRecord(Part):
    """The kernel of a run and its noise."""

    kernel: Text
    eta: Number


class SpecRecord(Part):
    """The settings of a run that the report looks at."""

    method: Text
    backbone: Text
    tasks: Annotated[list[Text], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    evaluation: HeldOut
    sampler: SamplerRecord
    params: dict[str, Any]
    budget: dict[str, Any]
    optimizer: dict[str, Any]
    lora: dict[str, Any] = {}
    full_finetuning: bool = False
    ema: dict[str, Any]


class Kept(Part):
    """spec.json."""

    spec: SpecRecord
    backbone_hash: Text


class StartRecord(Part):
    """A line of provenance.jsonl."""

    commit: Text | None = ""
    device: Text | None = ""


class Overall(Part):
    """Cosines by group of weights; `all`, over all weights, is always present."""

    all: Number


class Pulls(Part):
    """A line of probes.jsonl."""

    share: Number
    interference: dict[str, Overall]


class Noise(Part):
    """Signal-to-noise ratio of a gradient estimator."""

    snr: Interval
    trace: float


class AtSigma(Noise):
    """The same at one noise level."""

    sigma: Number


class ProbeRecord(Part):
    """One entry of bench probe's output."""

    label: Text
    method: Text
    point: list[Text]
    sampler: SamplerRecord
    params: dict[str, Any]
    states: Annotated[int, Field(gt=1)]
    all: Noise
    by_sigma: list[AtSigma] = []
    mean_over_first: Interval
    interference: dict[str, dict[str, float]]


class Level(Part):
    """Measured and predicted variance at one noise level."""

    sigma: Number
    measured: Number
    predicted: Number
    ratio: Interval


class ExcessRecord(Part):
    """One entry of methods.opd_ppo_excess's output."""

    task: Text
    kernel: Text
    eta: Number
    states: int
    by_sigma: Annotated[list[Level], Field(min_length=1)]
    ratio: Interval


def _not_infinite(value: float) -> float:
    if math.isinf(value):
        raise ValueError("it is infinite")
    return value


class ComparedLine(Part):
    """A line of a comparison."""

    label: Text
    runs: list[Text]
    teacher_evaluations: Annotated[float, AfterValidator(_not_infinite)]
    """Training NFE of the line's teachers; NaN if unknown."""


class Compared(Part):
    """comparison-*.json: the lines of a comparison and their run folders."""

    lines: list[ComparedLine]
    lines_without_result: list[Text] = []


class Trial(Part):
    """A finished trial of a study."""

    trial: int
    values: Annotated[list[Number], Field(min_length=1)]
    settings: dict[str, Number | bool | Text | None]


class Chosen(Part):
    """A trial that a study chose."""

    trial: int


class Again(Trial):
    """A trial's settings with further seeds."""

    values: list[Number] = []
    value: Number | None
    scores: dict[str, list[Number]]


class Study(Part):
    """summary.json of a study."""

    study: Text
    objectives: Annotated[list[Text], Field(min_length=1)]
    split: Text
    budget: int
    trials: dict[str, int]
    complete: list[Trial]
    best: list[Chosen]
    confirmed: list[Again] = []
    settings: dict[str, Text]
    importances: dict[str, Number]
    command: Text = ""

    @model_validator(mode="after")
    def _one_value_an_objective(self) -> "Study":
        if any(len(trial.values) != len(self.objectives) for trial in self.complete):
            raise ValueError("a trial does not have one value per objective")
        return self


SUMMARY, KEPT = TypeAdapter(Summary), TypeAdapter(Kept)
STARTS = TypeAdapter(list[StartRecord])
POINTS, PULLS = TypeAdapter(list[Point]), TypeAdapter(list[Pulls])
PROBES = TypeAdapter(Annotated[list[ProbeRecord], Field(min_length=1)])
EXCESS = TypeAdapter(Annotated[list[ExcessRecord], Field(min_length=1)])
COMPARED, STUDY = TypeAdapter(Compared), TypeAdapter(Study)


def checked(kind: TypeAdapter, content: Any) -> Any:
    """The content, unchanged. Raises ValueError that names the first invalid value."""
    try:
        kind.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
    return content


def printable(text: str) -> str:
    """A text from a record for labels: control characters and halves of surrogate pairs are replaced."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def all_printable(content: Any) -> Any:
    """`printable` for every text of a JSON value, keys among them."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, list):
        return [all_printable(part) for part in content]
    if isinstance(content, dict):
        return {printable(key): all_printable(part) for key, part in content.items()}
    return content
