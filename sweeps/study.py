"""What a study is: one YAML file, typed and checked, and the Optuna study behind it."""

import json
import math
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, ValidationError, model_validator

from bench.config.contradictions import leaves
from bench.config.resolve import resolve
from bench.config.settings import Settings, first_problem, parse_seeds, read_yaml
from bench.config.spec import Spec
from bench.errors import UsageError, one_line, unknown
from bench.hashing import seed_of, text_hash
from bench.registry import task_names
from bench.system.files import read_text, write_atomic
from sweeps.storage import Place, damaged, make_folder, open_storage, storage_errors

Scalar = bool | int | float | str
LARGEST = 10**15
"""Beyond it Optuna's samplers lose whole numbers."""
MEAN: Final = "mean"


class Axis(Settings):
    """One dimension of the search space: a range from low to high, or choices."""

    low: int | float | None = None
    high: int | float | None = None
    """Two integers make an integer dimension."""
    log: bool = False
    choices: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    """Values as --set takes them; a list is written as text: "[ocr, geneval]"."""
    when: dict[str, tuple[Scalar, ...]] = Field(default={})
    """Only where earlier dimensions have one of these values; elsewhere the method's own default holds."""

    @model_validator(mode="after")
    def _range_or_choices(self) -> "Axis":
        if (self.choices is None) == (self.low is None) or (self.low is None) != (self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None:
            if not (abs(self.low) <= LARGEST and abs(self.high) <= LARGEST):
                raise ValueError(f"low {self.low} and high {self.high} must lie within {LARGEST:.0e}")
            if not self.low < self.high:
                raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a range above 0")
        choices = self.choices or ()
        for index, choice in enumerate(choices):
            if choice in choices[:index]:
                raise ValueError(f"choices name {choice!r} twice")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """low and high of a range."""
        assert self.low is not None and self.high is not None, "choices have no ends"
        return self.low, self.high

    def holds(self, value: Scalar) -> bool:
        """Whether a trial could have this value."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.ends
        return isinstance(value, int | float) and low <= value <= high

    def gave(self, value: Scalar) -> bool:
        """Whether a sampler can have drawn it: at an end of a range rounding may lead just outside."""
        if self.choices is not None or not isinstance(value, int | float):
            return self.holds(value)
        low, high = self.ends
        return math.isclose(value, min(max(value, low), high), rel_tol=1e-9)

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """This trial's value."""
        if self.choices is not None:
            choice = trial.suggest_categorical(name, self.choices)
            assert choice is not None  # Optuna knows such choices, a study's file does not
            return choice
        low, high = self.ends
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=self.log)
        return trial.suggest_float(name, low, high, log=self.log)


class StudySpec(Settings):
    """A study, completely. Runs are judged on validation prompts: test prompts are for what a study has chosen."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    method: str
    tasks: str | tuple[str, ...] = "all"
    backbone: str = "micro"
    budget: Annotated[int, Field(gt=0, le=LARGEST)]
    """Training NFE of every run: trials compare at equal compute."""
    settings: dict[str, Any] = Field(default={})
    """Fixed, as --set key=value."""
    space: Annotated[dict[str, Axis], Field(min_length=1)]
    objective: Literal["mean"] | Annotated[tuple[str, ...], Field(min_length=1)] = MEAN
    """mean: the mean of all tasks' held-out scores. Several tasks: one objective each, for their Pareto front."""
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"
    """Stops trials that do badly along their course (bench's anytime curve); for a single objective."""
    points: Annotated[int, Field(gt=0, le=1000)] = 3
    """Held-out evaluations along a run, the last at its end."""
    trials: Annotated[int, Field(gt=0, le=100_000)]
    seeds: Annotated[int, Field(ge=0)] | str = 0
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
        if self.objective != MEAN and len(set(self.objective)) < len(self.objective):
            raise ValueError(f"an objective is named twice: {', '.join(self.objective)}")
        told: set[str] = set()
        for key in [key for name, value in self.settings.items() for key in leaves({name: value})] + [*self.space]:
            if key.partition(".")[0] == "budget" or key in ("evaluation.split", "evaluation.points", "seed"):
                raise ValueError(f"{key} is the study's own: budget, points and seeds are set beside settings")
            if key in told:
                raise ValueError(f"{key} is given twice, in settings or in settings and space")
            told.add(key)
        return self

    @property
    def task_list(self) -> list[str]:
        return task_names([self.tasks] if isinstance(self.tasks, str) else [*self.tasks])

    @property
    def seed_list(self) -> list[int]:
        return parse_seeds(str(self.seeds))

    @property
    def identity(self) -> str:
        """Of what makes trials comparable; a study may be given more trials or other settings to try first."""
        return text_hash(self.model_dump(mode="json", exclude={"trials", "enqueue"}))

    def overrides(self, chosen: dict[str, Scalar]) -> list[str]:
        """`--set` values of a run with these settings."""
        shares = ",".join(f"{(i + 1) / self.points:.4f}" for i in range(self.points - 1))
        fixed = [f"{key}={json.dumps(value, default=str)}" for key, value in self.settings.items()]
        return [
            f"budget={{nfe: {self.budget}}}", f"evaluation.points=[{shares}]", "evaluation.split=validation",
            *fixed, *shown(chosen),
        ]  # fmt: skip

    def run(self, chosen: dict[str, Scalar], seed: int) -> Spec:
        """The run of a trial with these settings. Raises UsageError where the method refuses them."""
        return resolve(self.method, self.task_list, seed, self.backbone, overrides=self.overrides(chosen))

    def values(self, scores: dict[str, list[float]]) -> list[float]:
        """What a trial is judged by, one value an objective: means of its scores, which every task has for every
        seed."""
        means = {task: sum(values) / len(values) for task, values in scores.items()}
        return [sum(means.values()) / len(means)] if self.objective == MEAN else [means[t] for t in self.objective]

    def suggest(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """A trial's settings, dimension by dimension."""
        return self._walk(lambda name, axis: axis.suggest(trial, name))

    def example(self) -> dict[str, Scalar]:
        """Settings that a trial could have: of every dimension its first value."""
        return self._walk(lambda _, axis: axis.choices[0] if axis.choices is not None else axis.ends[0])

    def _walk(self, value: Callable[[str, Axis], Scalar]) -> dict[str, Scalar]:
        chosen: dict[str, Scalar] = {}
        for name, axis in self.space.items():
            if all(chosen.get(other) in values for other, values in axis.when.items()):
                chosen[name] = value(name, axis)
        return chosen


def shown(chosen: dict[str, Scalar]) -> list[str]:
    """Settings as --set takes them."""
    return [f"{key}={value}" for key, value in chosen.items()]


def read_study(path: Path) -> StudySpec:
    """A study's file, or one of this folder's by its name. Raises UsageError for what it cannot mean."""
    shipped = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.yaml"))}
    if not path.suffix and not path.exists() and len(path.parts) == 1:
        if path.name not in shipped:
            raise unknown("study", path.name, shipped)
        path = shipped[path.name]
    try:
        study = StudySpec.model_validate(read_yaml(path))
    except ValidationError as error:
        raise UsageError(f"study {path}: {first_problem(error, StudySpec)}") from error
    try:
        seeds = study.seed_list
    except UsageError as error:
        raise UsageError(f"study {path}: {error}") from error
    names = list(study.space)
    for index, (name, axis) in enumerate(study.space.items()):
        if other := next((key for key in axis.when if key not in names[:index]), None):
            raise UsageError(f"study {path}: space.{name}.when names {other!r}, which no dimension before it is")
    for tried in study.enqueue:
        for key, value in tried.items():
            if key not in study.space:
                raise unknown("key in enqueue", key, study.space)
            if not study.space[key].holds(value):
                raise UsageError(f"study {path}: enqueue has {key} {value!r}, which its dimension does not hold")
    known = study.task_list
    for task in study.objective if study.objective != MEAN else ():
        if task not in known:
            raise unknown("objective", task, [MEAN, *known])
    for tried in study.enqueue or (study.example(),):
        study.run(dict(tried), seeds[0])  # a key or value that no run takes is refused before the first trial
    return study


def open_study(spec: StudySpec, place: Place) -> optuna.Study:
    """The Optuna study, made if need be. Raises UsageError if the one there was begun with another file, StorageError
    if its storage cannot be used or holds a damaged trial.

    Call it under the study's lock: two processes that make one RDB schema at once trip over each other.
    """
    # Optuna's warnings about databases may repeat addresses.
    optuna.logging.set_verbosity(optuna.logging.ERROR if place.storage else optuna.logging.WARNING)
    make_folder(place.folder)
    storage = open_storage(place)
    with storage_errors(place):
        study = _begun(spec, place, storage)
        check_trials(spec, study, place)
    return study


def check_trials(spec: StudySpec, study: optuna.Study, place: Place) -> None:
    """Raises StorageError for a trial whose record contradicts itself: what is best, and what is tried next, is read
    from it."""
    for trial in study.get_trials(deepcopy=False):
        try:
            _check_trial(spec, trial)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
            what = f"its {error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise damaged(place, f"trial {trial.number} is damaged: {what}") from error


def _check_trial(spec: StudySpec, trial: FrozenTrial) -> None:
    if any(math.isinf(value) for value in trial.intermediate_values.values()):
        raise ValueError("a score on its course is infinite")
    if trial.state != TrialState.COMPLETE:
        return
    told = trial.user_attrs
    for value, mean in zip(trial.values, spec.values(told["scores"]), strict=True):
        if not (math.isfinite(value) and math.isclose(value, mean, rel_tol=1e-9, abs_tol=1e-12)):
            raise ValueError(f"its value {value:g} is not the mean of its scores, {mean:g}")
    for key, value in told["settings"].items():
        if key not in spec.space or not spec.space[key].gave(value):
            raise ValueError(f"its {key} is {value!r}, which the study does not try")
    if not all(isinstance(name, str) for name in told["runs"]):
        raise TypeError("its runs are no names")


def _begun(spec: StudySpec, place: Place, storage: optuna.storages.BaseStorage) -> optuna.Study:
    pruner = _pruner(spec.pruner)
    try:
        # Writes nothing: a finished study is shown where no space is left.
        study = optuna.load_study(storage=storage, study_name=spec.name, pruner=pruner)
    except KeyError:
        directions = [StudyDirection.MAXIMIZE] * (1 if spec.objective == MEAN else len(spec.objective))
        study = optuna.create_study(storage=storage, study_name=spec.name, pruner=pruner, directions=directions)
    begun, home = study.user_attrs.get("identity"), _home(place)
    if begun is None:
        study.set_user_attr("home", home)
        study.set_user_attr("spec", spec.model_dump(mode="json"))
        if spec.objective != MEAN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(spec.objective))
        study.set_user_attr("identity", spec.identity)  # last: a worker that dies before has begun nothing
    elif begun != spec.identity:
        raise UsageError(
            f"the study {spec.name!r} in {place.folder} was begun with another method, space, budget or seeds: "
            "give the new one another name"
        )
    elif study.user_attrs.get("home") != home:
        raise UsageError(
            f"the study {spec.name!r} in this storage belongs to another results folder, where its workers share locks "
            "and runs"
        )
    for tried in spec.enqueue:
        study.enqueue_trial(dict(tried), skip_if_exists=True)
    return study


def _home(place: Place) -> str:
    """The folder's own mark: workers that do not share it would take each other's trials for dead ones."""
    path = place.folder / "home"
    if not path.exists():
        write_atomic(path, secrets.token_hex(8).encode())
    return read_text(path)


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
