"""What a study is: one YAML file, typed and checked, and the Optuna study behind it."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.errors import UsageError, unknown
from bench.hashing import seed_of, text_hash
from bench.registry import task_names
from bench.settings import as_number, first_problem, parse_seeds, read_yaml
from bench.spec import Spec, resolve

Scalar = bool | int | float | str
MEAN = "mean"


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Axis(Part):
    """One dimension of the search space: a range from low to high, or choices."""

    low: int | float | None = None
    high: int | float | None = None
    """Two integers make an integer dimension."""
    log: bool = False
    choices: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    """Values as --set takes them; a list is written as text: "[ocr, geneval]"."""
    when: dict[str, tuple[Scalar, ...]] = {}
    """Only where earlier dimensions have one of these values; elsewhere the method's own default holds."""

    @model_validator(mode="after")
    def _range_or_choices(self) -> "Axis":
        if (self.choices is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and (self.choices is not None or self.low <= 0):
            raise ValueError("log needs a range above 0")
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """This trial's value."""
        if self.choices is not None:
            return trial.suggest_categorical(name, self.choices)
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return (trial.suggest_int if whole else trial.suggest_float)(name, self.low, self.high, log=self.log)


class StudySpec(Part):
    """A study, completely. Runs are judged on validation prompts: test prompts are for what a study has chosen."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    method: str
    tasks: str | tuple[str, ...] = "all"
    backbone: str = "micro"
    budget: Annotated[int, Field(gt=0)]
    """Training evaluations of every run: trials compare at equal compute."""
    settings: dict[str, Any] = {}
    """Fixed, as --set key=value."""
    space: Annotated[dict[str, Axis], Field(min_length=1)]
    objective: Literal["mean"] | tuple[str, ...] = MEAN
    """mean: the mean of all tasks' held-out scores. Several tasks: one objective each, for their Pareto front."""
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"
    """Stops trials that do badly along their course (bench's anytime curve); for a single objective."""
    points: Annotated[int, Field(gt=0)] = 3
    """Held-out evaluations along a run, the last at its end."""
    trials: Annotated[int, Field(gt=0)]
    seeds: str = "0"
    """Of every trial, as 0 or 0-2: its value is their mean."""
    seed: int = 0
    """Of the study's own draws."""
    enqueue: tuple[dict[str, Scalar], ...] = ()
    """Settings that are tried first: published ones, the present defaults."""

    @model_validator(mode="after")
    def _fits(self) -> "StudySpec":
        if self.pruner != "none" and self.objective != MEAN:
            raise ValueError("a pruner needs the single objective mean")
        if self.sampler == "nsga2" and self.objective == MEAN:
            raise ValueError("nsga2 is for several objectives")
        return self

    @property
    def task_list(self) -> list[str]:
        return task_names([self.tasks] if isinstance(self.tasks, str) else [*self.tasks])

    @property
    def seed_list(self) -> list[int]:
        return parse_seeds(self.seeds)

    @property
    def identity(self) -> str:
        """Of what makes trials comparable; a study may be given more trials or other settings to try first."""
        return text_hash(self.model_dump(mode="json", exclude={"trials", "enqueue"}))

    def overrides(self, chosen: dict[str, Scalar]) -> list[str]:
        """`--set` values of a run with these settings."""
        shares = ",".join(f"{(i + 1) / self.points:.4f}" for i in range(self.points - 1))
        fixed = [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]
        return [
            f"budget={{evaluations: {self.budget}}}", f"evaluation.points=[{shares}]", "evaluation.split=validation",
            *fixed, *shown(chosen),
        ]  # fmt: skip

    def run(self, chosen: dict[str, Scalar], seed: int) -> Spec:
        """The run of a trial with these settings. Raises UsageError where the method refuses them."""
        return resolve(self.method, self.task_list, seed, self.backbone, overrides=self.overrides(chosen))

    def suggest(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """A trial's settings, dimension by dimension."""
        chosen: dict[str, Scalar] = {}
        for name, axis in self.space.items():
            if all(chosen.get(other) in values for other, values in axis.when.items()):
                chosen[name] = axis.suggest(trial, name)
        return chosen


def shown(chosen: dict[str, Scalar]) -> list[str]:
    """Settings as --set takes them."""
    return [f"{key}={value}" for key, value in chosen.items()]


def read_study(path: Path) -> StudySpec:
    """A study's file, or one of this folder's by its name. Raises UsageError for what it cannot mean."""
    shipped = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}
    if not path.suffix and not path.exists():
        if path.name not in shipped:
            raise unknown("study", path.name, shipped)
        path = shipped[path.name]
    content = numbers(read_yaml(path))
    try:
        study = StudySpec.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"study {path}: {first_problem(error, StudySpec)}") from error
    names = list(study.space)
    for index, (name, axis) in enumerate(study.space.items()):
        if other := next((key for key in axis.when if key not in names[:index]), None):
            raise UsageError(f"study {path}: space.{name}.when names {other!r}, which no dimension before it is")
    for tried in study.enqueue:
        if other := next((key for key in tried if key not in study.space), None):
            raise unknown("key in enqueue", other, study.space)
    known = study.task_list
    for task in study.objective if study.objective != MEAN else ():
        if task not in known:
            raise unknown("objective", task, [MEAN, *known])
    for tried in study.enqueue or ({},):
        study.run(dict(tried), study.seed_list[0])  # a key or value that no run takes is refused before the first trial
    return study


def numbers(value: Any) -> Any:
    """YAML reads 1e-3 as text; people mean the number."""
    if isinstance(value, dict):
        return {key: numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [numbers(v) for v in value]
    return as_number(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Place:
    """Where a study is kept."""

    folder: Path
    storage: str | None = None
    """URL of an Optuna RDB storage; None: a journal file in the folder."""

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.log"


def open_study(spec: StudySpec, place: Place) -> optuna.Study:
    """The Optuna study, made if need be. Raises UsageError if the one there was begun with another file.

    Call it under the study's lock: two processes that make one RDB schema at once trip over each other.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place.folder.mkdir(parents=True, exist_ok=True)
    directions = ["maximize"] * (1 if spec.objective == MEAN else len(spec.objective))
    study = optuna.create_study(
        storage=_storage(place), study_name=spec.name, directions=directions, load_if_exists=True,
        pruner=_pruner(spec.pruner),
    )  # fmt: skip
    begun = study.user_attrs.get("identity")
    if begun is None:
        study.set_user_attr("identity", spec.identity)
        study.set_user_attr("spec", spec.model_dump(mode="json"))
        if spec.objective != MEAN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(spec.objective))
    elif begun != spec.identity:
        raise UsageError(
            f"the study {spec.name!r} in {place.folder} was begun with another method, space, budget or seeds: "
            "give the new one another name"
        )
    for tried in spec.enqueue:
        study.enqueue_trial(dict(tried), skip_if_exists=True)
    return study


def _storage(place: Place):
    if place.storage:
        return optuna.storages.get_storage(place.storage)
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(str(place.journal)))


def _pruner(name: str) -> optuna.pruners.BasePruner:
    return {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }[name]()


def sampler(spec: StudySpec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial, seeded by its number: what it draws depends on the trials before, not on who asks."""
    seed = seed_of(spec.name, spec.seed, number) % 2**31
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if spec.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)
