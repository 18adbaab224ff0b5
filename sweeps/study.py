"""Studies: the YAML file that describes one, validated, and the Optuna study that it defines."""

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
from sweeps.storage import Place, damaged, make_folder, open_storage, read_storage, storage_errors

Scalar = bool | int | float | str
LARGEST = 10**15
"""Largest number in a study: beyond it Optuna's samplers cannot represent every integer."""
HOME = "home"
"""File in a study's folder with the folder's random identifier."""
MEAN: Final = "mean"
"""The objective that is the mean of all tasks' scores."""


class Axis(Settings):
    """One dimension of the search space: a range from low to high, or choices."""

    low: int | float | None = None
    """Lower end of the range, included."""
    high: int | float | None = None
    """Upper end of the range, included. If both ends are integers, so are the values."""
    log: bool = False
    """Whether to sample the range on a logarithmic scale."""
    choices: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    """Values as --set takes them; lists are written as text: "[ocr, geneval]"."""
    when: dict[str, tuple[Scalar, ...]] = Field(default={})
    """Earlier dimension -> values with which this one is varied; otherwise the method's default is used."""

    @model_validator(mode="after")
    def _range_or_choices(self) -> "Axis":
        no_low, no_high = self.low is None, self.high is None
        if no_low != no_high or (self.choices is None) == no_low:
            raise ValueError("give either low and high, or choices")
        if self.low is not None and self.high is not None:
            if not (abs(self.low) <= LARGEST and abs(self.high) <= LARGEST):
                raise ValueError(f"low {self.low} and high {self.high} must be within ±{LARGEST:.0e}")
            if not self.low < self.high:
                raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a range above 0")
        choices = self.choices or ()
        for index, choice in enumerate(choices):
            if choice in choices[:index]:
                raise ValueError(f"choices contain {choice!r} twice")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The low and high end of a range."""
        assert self.low is not None and self.high is not None, "an axis of choices has no ends"
        return self.low, self.high

    def holds(self, value: Scalar) -> bool:
        """Whether the value is within the range or among the choices."""
        if self.choices is not None:
            return value in self.choices
        low, high = self.ends
        return isinstance(value, int | float) and low <= value <= high

    def gave(self, value: Scalar) -> bool:
        """Whether a sampler can have drawn the value: like `holds`, with a tolerance for rounding at a range's ends."""
        if self.choices is not None or not isinstance(value, int | float):
            return self.holds(value)
        low, high = self.ends
        nearest = min(max(value, low), high)
        return math.isclose(value, nearest, rel_tol=1e-9)

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """Draw a trial's value for this dimension."""
        if self.choices is not None:
            choice = trial.suggest_categorical(name, self.choices)
            assert choice is not None  # Optuna allows None as a choice, Scalar does not
            return choice
        low, high = self.ends
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=self.log)
        return trial.suggest_float(name, low, high, log=self.log)


class Confirmation(Settings):
    """What a study runs after its trials: the best settings with further seeds (sweeps/confirm.py)."""

    best: Annotated[int, Field(ge=1, le=1000)]
    """Number of settings, those with the best values."""
    seeds: Annotated[int, Field(ge=0)] | str
    """Further seeds, as 101 or 101-102; none that the trials have."""


class StudySpec(Settings):
    """All settings of a study.

    Trials are scored on validation prompts. Test prompts stay unused, for evaluating the settings that a study chose.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    """Name of the study, and of its folder."""
    method: str
    """Method of every run."""
    tasks: str | tuple[str, ...] = "all"
    """Tasks of every run."""
    backbone: str = "micro"
    """Backbone of every run."""
    budget: Annotated[int, Field(gt=0, le=LARGEST)]
    """Training NFE per run. Fixed, so that trials are compared at equal compute."""
    settings: dict[str, Any] = Field(default={})
    """Settings that are the same in every run, as --set key=value."""
    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """Setting -> the dimension of the search space that it is drawn from."""
    objective: Literal["mean"] | Annotated[tuple[str, ...], Field(min_length=1)] = MEAN
    """mean: the mean of all tasks' held-out scores. Names of tasks: one objective per task, giving a Pareto front."""
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    """Optuna sampler that proposes settings."""
    pruner: Literal["none", "median", "halving"] = "none"
    """Optuna pruner that stops trials early if their scores are poor; needs the single objective mean."""
    points: Annotated[int, Field(gt=0, le=1000)] = 3
    """Number of held-out evaluations per run, evenly spaced, the last at the end."""
    trials: Annotated[int, Field(gt=0, le=100_000)]
    """Number of trials in the study."""
    seeds: Annotated[int, Field(ge=0)] | str = 0
    """Seeds per trial, as 0 or 0-2; a trial's value is the mean over them."""
    seed: int = 0
    """Seed of the study's sampler."""
    enqueue: tuple[dict[str, Scalar], ...] = ()
    """Settings to try first, such as published ones or the current defaults."""
    confirm: Confirmation | None = None
    """The best settings to run with further seeds, and the seeds; needs the single objective mean."""

    @model_validator(mode="after")
    def _fits(self) -> "StudySpec":
        if self.pruner != "none" and self.objective != MEAN:
            raise ValueError("a pruner needs the single objective mean")
        if self.confirm and self.objective != MEAN:
            raise ValueError("confirm needs the single objective mean; a Pareto front has no best settings")
        if self.sampler == "nsga2" and self.objective == MEAN:
            raise ValueError("nsga2 is for several objectives")
        if self.objective != MEAN and len(set(self.objective)) < len(self.objective):
            raise ValueError(f"an objective is named twice: {', '.join(self.objective)}")
        fixed = [key for name, value in self.settings.items() for key in leaves({name: value})]
        known: set[str] = set()
        for key in [*fixed, *self.space]:
            reserved = key in ("evaluation.split", "evaluation.points", "seed")
            if reserved or key.partition(".")[0] == "budget":
                raise ValueError(f"{key} cannot be varied: set budget, points and seeds at the top level of the study")
            if key in known:
                raise ValueError(f"{key} is given twice, in settings or in settings and space")
            known.add(key)
        return self

    @property
    def task_list(self) -> list[str]:
        """`tasks` as a list of names, with "all" resolved."""
        names = [self.tasks] if isinstance(self.tasks, str) else [*self.tasks]
        return task_names(names)

    @property
    def seed_list(self) -> list[int]:
        """The seeds of every trial. Raises UsageError if `seeds` cannot be parsed."""
        return parse_seeds(str(self.seeds))

    @property
    def further_seeds(self) -> list[int]:
        """The seeds of the confirmation; none without one. Raises UsageError if they cannot be parsed."""
        return parse_seeds(str(self.confirm.seeds)) if self.confirm else []

    @property
    def identity(self) -> str:
        """A hash of what makes trials comparable; their number, `enqueue` and `confirm` may change during a study."""
        return text_hash(self.model_dump(mode="json", exclude={"trials", "enqueue", "confirm"}))

    def overrides(self, chosen: dict[str, Scalar]) -> list[str]:
        """The `--set` values of a run with these settings."""
        inner = [(i + 1) / self.points for i in range(self.points - 1)]
        shares = ",".join(f"{point:.4f}" for point in inner)
        fixed = [f"{key}={json.dumps(value, default=str)}" for key, value in self.settings.items()]
        return [
            f"budget={{nfe: {self.budget}}}",
            f"evaluation.points=[{shares}]",
            "evaluation.split=validation",
            *fixed,
            *shown(chosen),
        ]

    def run(self, chosen: dict[str, Scalar], seed: int) -> Spec:
        """The run of a trial with these settings. Raises UsageError if they are not valid for the method."""
        overrides = self.overrides(chosen)
        return resolve(self.method, self.task_list, seed, self.backbone, overrides=overrides)

    def confirming(self, trial: FrozenTrial) -> list[Spec]:
        """The runs that confirm a finished trial, one per seed of `confirm`."""
        return [self.run(trial.user_attrs["settings"], seed) for seed in self.further_seeds]

    def values(self, scores: dict[str, list[float]]) -> list[float]:
        """A trial's values, one per objective, from its scores (task -> one per seed)."""
        means = {task: sum(values) / len(values) for task, values in scores.items()}
        if self.objective == MEAN:
            return [sum(means.values()) / len(means)]
        return [means[task] for task in self.objective]

    def suggest(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """Draw a trial's settings, dimension by dimension."""
        return self._walk(lambda name, axis: axis.suggest(trial, name))

    def example(self) -> dict[str, Scalar]:
        """Settings that a trial could have: the first value of every dimension."""
        return self._walk(lambda _, axis: axis.choices[0] if axis.choices is not None else axis.ends[0])

    def _walk(self, value: Callable[[str, Axis], Scalar]) -> dict[str, Scalar]:
        """name -> value(name, axis) for every dimension whose conditions (`when`) hold."""
        chosen: dict[str, Scalar] = {}
        for name, axis in self.space.items():
            applies = all(chosen.get(other) in values for other, values in axis.when.items())
            if applies:
                chosen[name] = value(name, axis)
        return chosen


def shown(chosen: dict[str, Scalar]) -> list[str]:
    """Settings in the form --set takes."""
    return [f"{key}={value}" for key, value in chosen.items()]


def read_study(path: Path) -> StudySpec:
    """Read and check a study's file; a bare name means one in this folder. Raises UsageError if it is not valid."""
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
        further = study.further_seeds
    except UsageError as error:
        raise UsageError(f"study {path}: {error}") from error
    if both := sorted({*seeds} & {*further}):
        raise UsageError(f"study {path}: confirm.seeds has seed {both[0]}, which the trials have too")
    names = list(study.space)
    for index, (name, axis) in enumerate(study.space.items()):
        later = [key for key in axis.when if key not in names[:index]]
        if later:
            raise UsageError(f"study {path}: space.{name}.when names {later[0]!r}, which is not an earlier dimension")
    for tried in study.enqueue:
        for key, value in tried.items():
            if key not in study.space:
                raise unknown("key in enqueue", key, study.space)
            if not study.space[key].holds(value):
                raise UsageError(f"study {path}: enqueue has {key} {value!r}, which is outside its dimension")
    known = study.task_list
    for task in study.objective if study.objective != MEAN else ():
        if task not in known:
            raise unknown("objective", task, [MEAN, *known])
    # Resolving a run refuses keys and values that the method does not accept, before the first trial.
    for tried in study.enqueue or (study.example(),):
        study.run(dict(tried), seeds[0])
    return study


def open_study(spec: StudySpec, place: Place) -> optuna.Study:
    """The Optuna study, created if it does not exist. The caller holds the study's lock (see `Claims.alone`).

    Raises UsageError if a study of this name was started with different settings, and StorageError if its storage
    cannot be used or contains a damaged trial.
    """
    # Optuna's warnings about databases may contain the URL with its password.
    level = optuna.logging.ERROR if place.storage else optuna.logging.WARNING
    optuna.logging.set_verbosity(level)
    make_folder(place.folder)
    storage = open_storage(place)
    with storage_errors(place):
        study = _started(spec, place, storage)
        check_trials(spec, study, place)
    return study


def find_study(spec: StudySpec, place: Place) -> optuna.Study | None:
    """The Optuna study if it exists, else None. Changes nothing on disk. Raises as `open_study`."""
    storage = read_storage(place)
    if storage is None:
        return None
    with storage_errors(place):
        try:
            study = optuna.load_study(storage=storage, study_name=spec.name)
        except KeyError:
            return None
        _refuse_other(spec, study, place)
        check_trials(spec, study, place)
    return study


def trials_left(spec: StudySpec, trials: list[FrozenTrial]) -> int:
    """Number of trials that are still to be started; enqueued settings are WAITING trials, which have not started."""
    started = [trial for trial in trials if trial.state != TrialState.WAITING]
    return max(0, spec.trials - len(started))


def candidates(spec: StudySpec, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials to be confirmed: the best with different settings, best first, the earlier one of equals."""
    if spec.confirm is None:
        return []
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    chosen: list[FrozenTrial] = []
    for trial in sorted(finished, key=lambda trial: -trial.values[0]):
        known = [other.user_attrs["settings"] for other in chosen]
        if trial.user_attrs["settings"] not in known:
            chosen.append(trial)
    return chosen[: spec.confirm.best]


def check_trials(spec: StudySpec, study: optuna.Study, place: Place) -> None:
    """Raise StorageError for a trial whose record contradicts itself.

    Records decide which settings are best and which are tried next, so a damaged one must not go unnoticed.
    """
    for trial in study.get_trials(deepcopy=False):
        try:
            _check_trial(spec, trial)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
            what = f"its {error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise damaged(place, f"trial {trial.number} is damaged: {what}") from error


def _check_trial(spec: StudySpec, trial: FrozenTrial) -> None:
    """Raise ValueError, TypeError or KeyError if a trial's record contradicts itself."""
    if any(math.isinf(value) for value in trial.intermediate_values.values()):
        raise ValueError("an intermediate score is infinite")
    if trial.state != TrialState.COMPLETE:
        return
    stored = trial.user_attrs
    means = spec.values(stored["scores"])
    for value, mean in zip(trial.values, means, strict=True):
        equal = math.isclose(value, mean, rel_tol=1e-9, abs_tol=1e-12)
        if not (math.isfinite(value) and equal):
            raise ValueError(f"its value {value:g} is not the mean of its scores, {mean:g}")
    for key, value in stored["settings"].items():
        if key not in spec.space or not spec.space[key].gave(value):
            raise ValueError(f"its {key} is {value!r}, which is outside the study's space")
    if not all(isinstance(name, str) for name in stored["runs"]):
        raise TypeError("its runs are not names")


def _started(spec: StudySpec, place: Place, storage: optuna.storages.BaseStorage) -> optuna.Study:
    """The Optuna study, created if it does not exist.

    Raises UsageError if the existing one has different settings or belongs to a different results folder.
    """
    pruner = _pruner(spec.pruner)
    try:
        # load_study writes nothing, so that a finished study can be shown on a full disk.
        study = optuna.load_study(storage=storage, study_name=spec.name, pruner=pruner)
    except KeyError:
        count = 1 if spec.objective == MEAN else len(spec.objective)
        directions = [StudyDirection.MAXIMIZE] * count
        study = optuna.create_study(storage=storage, study_name=spec.name, pruner=pruner, directions=directions)
    if study.user_attrs.get("identity") is None:
        study.set_user_attr("home", _home(place))
        study.set_user_attr("spec", spec.model_dump(mode="json"))
        if spec.objective != MEAN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(spec.objective))
        # Written last: if a worker dies before this line, the next one sets all attributes again.
        study.set_user_attr("identity", spec.identity)
    else:
        _refuse_other(spec, study, place)
    for tried in spec.enqueue:
        study.enqueue_trial(dict(tried), skip_if_exists=True)
    return study


def _refuse_other(spec: StudySpec, study: optuna.Study, place: Place) -> None:
    """Raise UsageError if an existing study has different settings or belongs to a different results folder."""
    identity = study.user_attrs.get("identity")
    if identity is None:  # a worker died while it created the study
        return
    if identity != spec.identity:
        raise UsageError(
            f"the study {spec.name!r} in {place.folder} was started with a different method, space, budget or seeds: "
            "give the new study a different name"
        )
    home = place.folder / HOME
    if not home.exists() or study.user_attrs.get("home") != read_text(home):
        raise UsageError(
            f"the study {spec.name!r} in this storage belongs to another results folder, where its workers share locks "
            "and runs: use that folder, or give this study a different name"
        )


def _home(place: Place) -> str:
    """The folder's random identifier, created if need be.

    Workers find dead workers by locks in the folder: without a shared folder, each would take over the others' trials.
    """
    path = place.folder / HOME
    if not path.exists():
        write_atomic(path, secrets.token_hex(8).encode())
    return read_text(path)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    """The pruner that a study's `pruner` names."""
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
    }
    return pruners[name]()


def sampler(spec: StudySpec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial, seeded by the trial's number.

    Its draws thus depend on the earlier trials but not on which worker asks.
    """
    seed = seed_of(spec.name, spec.seed, number) % 2**31
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if spec.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)
