"""What a run is: typed, validated, hashed, overridable with key=value."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.backbones.descriptor import Descriptor
from bench.errors import UsageError, unknown
from bench.hashing import text_hash
from bench.registry import find, task_names
from bench.sampler.rollout import Sampler
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import get_kernel

TEACHER_METHOD = "single_task"
PRESETS = Path(__file__).parent / "backbones" / "presets"
"""Published recipes by name."""
TRAINED_HERE = ("shipped", "train")
"""Sources of teachers that come from this project's recipe."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A section of a spec: unknown keys are refused, and 1.5 is not silently an int."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BudgetSpec(Part):
    """When to stop; exactly one is set."""

    updates: Annotated[int, Field(gt=0)] | None = None
    evaluations: Annotated[int, Field(gt=0)] | None = None
    seconds: Positive | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "BudgetSpec":
        if sum(v is not None for v in (self.updates, self.evaluations, self.seconds)) != 1:
            raise ValueError("set exactly one of budget.updates, budget.evaluations, budget.seconds")
        return self


class SamplerSpec(Part):
    """How training rollouts are drawn."""

    kernel: str = "ode"
    eta: float = 0.0
    steps: int = 10
    shift: Positive | None = None
    """None: the backbone's."""
    table: Literal["diffusers", "once"] = "diffusers"
    guidance: Guidance = 1.0

    def build(self, shift: float) -> Sampler:
        """The Sampler; raises UsageError for a kernel, eta, steps or table that does not exist."""
        schedule = make_schedule(self.steps, self.shift or shift, self.table)
        sampler = Sampler(schedule, get_kernel(self.kernel), self.eta)
        _ = sampler.coefficients  # an eta that the kernel refuses is refused here
        return sampler


class OptimizerSpec(Part):
    """AdamW on the student's adapter."""

    lr: Positive = 3e-4
    lr_end: Share = 1.0
    """Multiplier reached linearly at the end of the budget."""
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip: Positive = 1.0


class LoraSpec(Part):
    """The student's LoRA adapter."""

    rank: Annotated[int, Field(gt=0)] = 32
    alpha: Positive = 64.0
    targets: tuple[str, ...] | None = None
    """None: the published set (every attention projection)."""


class EmaSpec(Part):
    """Average of the student used for evaluation and as the result: decay min((1+k)/(10+k), decay)."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    every: Annotated[int, Field(gt=0)] = 8


class EvaluationSpec(Part):
    """Held-out evaluation of the EMA student with the deterministic Euler sampler."""

    steps: Annotated[int, Field(gt=0)] = 40
    guidance: Guidance | None = None
    """None: the one it was trained at (sampler.guidance)."""
    points: tuple[Share, ...] = (0.5, 1.0)
    """Shares of the budget at which to evaluate; the end always is."""
    batch: Annotated[int, Field(gt=0)] = 96
    split: Literal["validation", "test"] = "test"
    """Settings are chosen on validation prompts and reported on test prompts, which no choice has seen."""


class ProbesSpec(Part):
    """What is measured along training besides scores, at the evaluation points; costs are on a clock of their own."""

    interference: Annotated[int, Field(ge=0)] = 0
    """Gradient estimates per half for the cosines between tasks; 0 measures none."""


class Spec(Part):
    """A run, completely. Two specs that differ only in `seed` share a hash."""

    method: str
    backbone: str = "micro"
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 0
    budget: BudgetSpec = BudgetSpec(updates=100)
    sampler: SamplerSpec = SamplerSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    lora: LoraSpec = LoraSpec()
    ema: EmaSpec = EmaSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    probes: ProbesSpec = ProbesSpec()
    teachers: dict[str, str] = {}
    """task -> 'shipped', 'train' or a folder with a peft adapter; only for methods that need teachers."""
    teacher_guidance: dict[str, Guidance] = {}
    """task -> its teacher's guidance scale; by default the one its run was evaluated at, for a folder that is no run's
    adapter the student's."""
    scorers: dict[str, dict[str, str]] = {}
    """task -> what its scorer is made of, where the backbone's world leaves that open; see bench list tasks."""
    checkpoint_every: Annotated[int, Field(gt=0)] = 25
    """Updates between checkpoints."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    params: dict[str, Any] = {}
    """The method's own options, validated by the method."""

    def digest(self, backbone_hash: str) -> str:
        """Identity of the run apart from its seed: settings and the backbone's weights."""
        settings = {name: value for name, value in self.record().items() if name != "seed"}
        return text_hash({"spec": settings, "backbone": backbone_hash})

    def record(self) -> dict[str, Any]:
        """Plain data for spec.json; what nobody said of scorers is left out."""
        return self.model_dump(mode="json", exclude=set() if self.scorers else {"scorers"})

    def with_seed(self, seed: int) -> "Spec":
        return self.model_copy(update={"seed": seed})


def describe(backbone: str) -> Descriptor:
    """The descriptor of a registered backbone, or of the pipeline folder at a path; raises UsageError."""
    if "/" in backbone or Path(backbone).is_dir():
        if not (Path(backbone) / "model_index.json").is_file():
            raise UsageError(f"{backbone} is not a diffusers pipeline folder: it has no model_index.json")
        return find("backbone", "sd3")(backbone)
    return find("backbone", backbone)()


def resolve(
    method: str,
    tasks: list[str],
    seed: int = 0,
    backbone: str = "micro",
    preset: Path | None = None,
    overrides: list[str] | None = None,
    teachers: str | None = None,
) -> Spec:
    """Build a spec: defaults <- the backbone's recipe <- preset file <- overrides. Raises UsageError.

    `tasks` may be ["all"]. `preset` is a file, or the name of one of bench/backbones/presets. `overrides` are
    "dotted.key=value" with YAML values. `teachers` is 'shipped', 'train' or a folder that holds one adapter
    folder a task.
    """
    tasks = task_names(tasks)
    method_class = find("method", method)
    descriptor = describe(backbone)
    asked: dict[str, Any] = _read_yaml(_preset_file(preset)) if preset else {}
    for override in overrides or []:
        _merge(asked, parse_override(override))
    settings: dict[str, Any] = {}
    if descriptor.recipes and (descriptor.recipes / f"{method}.yaml").is_file():
        settings = _recipe(descriptor.recipes / f"{method}.yaml", tasks, asked)
    _merge(settings, asked)
    fixed = {"method": method, "backbone": backbone, "tasks": tasks, "seed": seed}
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise UsageError(f"{key!r} is set by its own flag, not by --set or a preset")
    if method_class.needs.teachers:
        source = teachers or ("shipped" if descriptor.teachers else "train")
        named = source in TRAINED_HERE
        sources = {task: source if named else str(Path(source) / task) for task in tasks}
        settings["teachers"] = sources | settings.get("teachers", {})
    elif teachers or settings.get("teachers") or settings.get("teacher_guidance"):
        raise UsageError(f"method {method!r} takes no teachers")
    try:
        spec = Spec.model_validate(settings | fixed)
        spec = spec.model_copy(update={"params": method_class.Options.model_validate(spec.params).model_dump()})
    except ValidationError as error:
        raise UsageError(_first_problem(error, method_class)) from error
    if spec.evaluation.guidance is None:
        evaluation = spec.evaluation.model_copy(update={"guidance": spec.sampler.guidance})
        spec = spec.model_copy(update={"evaluation": evaluation})
    for section in ("teachers", "teacher_guidance"):
        for task in getattr(spec, section):
            if task not in tasks:
                raise unknown(f"task in {section}", task, tasks)
    check_scorers(spec.scorers, tasks)
    if spec.teachers:
        guidance = {task: _teacher_guidance(spec, task) for task in tasks}
        spec = spec.model_copy(update={"teacher_guidance": guidance | spec.teacher_guidance})
    sampler = spec.sampler.build(descriptor.shift)
    method_class.check(spec, sampler)
    return spec


def check_scorers(scorers: dict[str, dict[str, str]], tasks: list[str]) -> None:
    """Raise UsageError for a scorer of another task, or a key that the task does not know."""
    for task, sources in scorers.items():
        if task not in tasks:
            raise unknown("task in scorers", task, tasks)
        for key in sources:
            known = find("task", task).sources
            if key not in known:
                raise unknown(f"key in scorers.{task}", key, known)


def scorer_settings(overrides: list[str], tasks: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """What --set scorers.<task>.<key>=VALUE says where there is nothing else to set. Raises UsageError."""
    settings: dict[str, Any] = {}
    for override in overrides:
        parsed = parse_override(override)
        if list(parsed) != ["scorers"]:
            known = [f"scorers.{task}.{key}" for task in tasks for key in find("task", task).sources]
            raise unknown("setting", override.partition("=")[0], known)
        _merge(settings, parsed)
    for task, sources in (scorers := settings.get("scorers", {})).items():
        if not isinstance(sources, dict):
            raise UsageError(f"scorers.{task} is a section of settings, not a value")
        scorers[task] = {key: str(value) for key, value in sources.items()}
    check_scorers(scorers, list(tasks))
    return scorers


def teacher_spec(spec: Spec, task: str) -> Spec:
    """How a task's teacher is trained: single-task RL by the backbone's recipe, with the run's seed and device."""
    trained = resolve(TEACHER_METHOD, [task], seed=spec.seed, backbone=spec.backbone)
    scorers = {task: spec.scorers[task]} if task in spec.scorers else {}
    return trained.model_copy(update={"device": spec.device, "scorers": scorers})


def _teacher_guidance(spec: Spec, task: str) -> float:
    if spec.teachers[task] in TRAINED_HERE:
        return teacher_spec(spec, task).evaluation.guidance
    beside = Path(spec.teachers[task]).parent / "spec.json"
    if beside.is_file():
        return float(json.loads(beside.read_text())["spec"]["evaluation"]["guidance"])
    return spec.sampler.guidance


def _recipe(path: Path, tasks: list[str], asked: dict) -> dict:
    """A recipe file's settings for what is asked.

    Its `by_task` section applies when the run has just that one task; `by_param` when a method's setting, as asked or
    by the recipe, has that value: {engine: {grpo: {settings}}}.
    """
    recipe = _read_yaml(path)
    by_task, by_param = recipe.pop("by_task", {}), recipe.pop("by_param", {})
    if len(tasks) == 1:
        _merge(recipe, by_task.get(tasks[0], {}))
    for name, settings in by_param.items():
        value = next((v for source in (asked, recipe) if (v := _param(source, name)) is not None), None)
        if isinstance(value, str):
            _merge(recipe, settings.get(value, {}))
    return recipe


def _param(settings: dict, name: str) -> object:
    params = settings.get("params")
    return params.get(name) if isinstance(params, dict) else None


def _preset_file(preset: Path) -> Path:
    """A preset that comes with the package by its name, else the file itself."""
    if preset.suffix or preset.exists() or len(preset.parts) > 1:
        return preset
    shipped = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if preset.name not in shipped:
        raise unknown("preset", preset.name, shipped)
    return shipped[preset.name]


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read preset {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"preset {path} must be a mapping of settings, got {type(content).__name__}")
    return content


def parse_override(text: str) -> dict:
    """ "a.b=1" -> {"a": {"b": 1}}. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set takes key=value, got {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {text!r}: the value is not valid YAML") from error
    if isinstance(parsed, str):
        parsed = _number(parsed)
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _merge(into: dict, new: dict) -> None:
    for key, value in new.items():
        if key == "budget" and isinstance(value, dict):
            into[key] = dict(value)  # one budget replaces another: only one of its keys may be set
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif isinstance(value, dict):
            into[key] = {}
            _merge(into[key], value)
        elif key == "budget" or isinstance(into.get(key), dict):
            raise UsageError(f"{key!r} is a section of settings, not a value")
        else:
            into[key] = value


def _first_problem(error: ValidationError, method_class: type) -> str:
    problem = error.errors()[0]
    in_params = error.title == method_class.Options.__name__
    path = [*(["params"] if in_params else []), *(str(part) for part in problem["loc"])]
    if problem["type"] == "extra_forbidden":
        section: Any = method_class.Options if in_params else Spec
        for part in problem["loc"][:-1]:
            section = section.model_fields[part].annotation
        return str(unknown("key", ".".join(path), [".".join([*path[:-1], name]) for name in section.model_fields]))
    if problem["type"] == "model_type":
        return f"{'.'.join(path)} is a section of settings, not a value"
    given = f" (got {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    return f"{'.'.join(path) or 'spec'}: {problem['msg']}{given}"
