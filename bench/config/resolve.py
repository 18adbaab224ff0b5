"""How the words of a command become a spec: defaults, the backbone's recipe, a preset, overrides."""

from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.config.bounds import Guidance
from bench.config.contradictions import leaves
from bench.config.descriptor import Descriptor
from bench.config.scorers import check_scorers, check_worlds, words
from bench.config.settings import first_problem, merge, parse_override, read_yaml
from bench.config.spec import EvaluationSpec, SamplerSpec, Spec
from bench.errors import BenchError, DamagedError, UsageError, one_line, unknown
from bench.registry import broken, find, ours, task_names
from bench.sampler.transitions import get_kernel
from bench.system.files import read_record
from bench.weights.hub import PREFIX as HUB
from bench.weights.hub import check_repository, check_source

TEACHER_METHOD = "single_task"
PRESETS = Path(__file__).parent / "presets"
"""Published recipes by name."""
OF_TEACHERS = ("teachers", "teacher_guidance")
TRAINING = (
    "budget", "optimizer.", "ema.", "probes.", "checkpoint_every", "sampler.kernel", "sampler.eta", "sampler.steps",
)  # fmt: skip
"""Beginnings of settings of training."""
TRAINED_HERE = ("shipped", "train")
"""Sources of teachers that come from this project's recipe."""


def describe(backbone: str) -> Descriptor:
    """The descriptor of a registered backbone, or of the pipeline at a path or hub address; raises UsageError."""
    path = Path(backbone)
    if backbone.startswith(HUB):
        check_repository(backbone)
    if backbone.startswith(HUB) or (path.suffix == ".safetensors" and path.is_file()):
        return find("backbone", "sd3")(backbone)
    if "/" in backbone or path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UsageError(
                f"{backbone} is no diffusers pipeline: neither a folder with model_index.json nor a .safetensors file; "
                f"one of the hub is written {HUB}OWNER/REPO"
            )
        return find("backbone", "sd3")(backbone)
    make = find("backbone", backbone)
    try:
        descriptor = make()
    except Exception as error:
        if isinstance(error, BenchError) or ours("backbone", backbone):
            raise
        raise broken("backbone", backbone, f"fails: {one_line(error)}") from error
    if not isinstance(descriptor, Descriptor):
        raise broken("backbone", backbone, f"gives no Descriptor but {type(descriptor).__name__}")
    return descriptor


def resolve(
    method: str | None,
    tasks: list[str] | None,
    seed: int = 0,
    backbone: str | None = None,
    preset: Path | None = None,
    overrides: list[str] | None = None,
    teachers: str | None = None,
) -> Spec:
    """Build a spec: defaults <- the backbone's recipe <- preset file <- overrides. Raises UsageError.

    `tasks` may be ["all"]. `preset` is a file, a run's spec.json, or the name of one of bench/config/presets;
    method, tasks and backbone that are None are the preset's, tasks otherwise all, the backbone micro; of a preset's
    teachers those of the run's tasks are taken. `overrides` are "dotted.key=value" with YAML values. `teachers` is
    'shipped', 'train' or a folder that holds one adapter folder a task; it goes before those of a preset.
    """
    asked = _read_preset(preset) if preset else {}
    method, tasks = _named(asked, "method", method), _tasks(asked, tasks)
    _check_sections(asked)
    for section in OF_TEACHERS:
        if section in asked:
            asked[section] = {task: value for task, value in asked[section].items() if task in tasks}
    if method is None:
        raise UsageError("name a method (--method), or a preset that names one")
    backbone = backbone or asked.get("backbone", "micro")
    asked.pop("backbone", None)
    if teachers:
        asked.pop("teachers", None)
    method_class = find("method", method)
    descriptor = describe(backbone)
    preset_alone = deepcopy(asked)
    for override in overrides or []:
        merge(asked, parse_override(override))
    _check_sections(asked)
    settings: dict[str, Any] = {}
    merge(settings, descriptor.defaults())
    if path := _recipe_file(descriptor, method):
        merge(settings, _recipe(path, method_class, tasks, asked))
    before = deepcopy(settings)
    merge(before, preset_alone)
    merge(settings, asked)
    fixed = {"method": method, "backbone": backbone, "tasks": tasks, "seed": seed}
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise UsageError(f"{key!r} is set by its own flag, not by --set")
    if method_class.needs.teachers:
        source = teachers or ("shipped" if descriptor.teachers else "train")
        named = source in TRAINED_HERE
        sources = {task: source if named else str(Path(source) / task) for task in tasks}
        settings["teachers"] = sources | settings.get("teachers", {})
        for told in [source, *settings["teachers"].values()]:
            _refuse_misspelt(told)
    elif teachers or settings.get("teachers") or settings.get("teacher_guidance"):
        raise UsageError(f"method {method!r} takes no teachers")
    settings["scorers"] = words(settings.get("scorers", {}))
    try:
        spec = Spec.model_validate(settings | fixed)
        options = method_class.Options.model_validate(spec.params)
    except ValidationError as error:
        in_params = error.title == method_class.Options.__name__
        whole = (method_class.Options, ("params",)) if in_params else (Spec, ())
        raise UsageError(first_problem(error, *whole)) from error
    _refuse_idle(options, before)
    spec = _unsaid(spec.model_copy(update={"params": options.record()}), descriptor)
    evaluation = _as_trained(spec.evaluation, spec.sampler, descriptor.shift)
    spec = spec.model_copy(update={"evaluation": evaluation})
    _refuse_silent_kernel(asked, spec.sampler)
    if spec.lora.start:
        check_source(spec.lora.start, "lora.start")
    descriptor.check(spec.compute)
    if spec.probes.interference and len(tasks) == 1:
        raise UsageError("probes.interference compares tasks, and the run has one: leave it out")
    for section in OF_TEACHERS:
        for task in getattr(spec, section):
            if task not in tasks:
                raise unknown(f"task in {section}", task, tasks)
    check_scorers(spec.scorers, tasks, descriptor.world)
    check_worlds(spec.scorers, tasks, descriptor.world)
    if spec.teachers:
        guidance = {task: _teacher_guidance(spec, task) for task in tasks if task not in spec.teacher_guidance}
        spec = spec.model_copy(update={"teacher_guidance": guidance | spec.teacher_guidance})
    sampler = spec.sampler.build(descriptor.shift)
    method_class.check(spec, sampler)
    return spec


def refuse_training(method: str, overrides: list[str]) -> None:
    """Raise UsageError for a setting of training, among those that a user gives to a method that does not train."""
    if find("method", method).trains:
        return
    for text in overrides:
        for key in leaves(parse_override(text)):
            if key.startswith(TRAINING):
                raise UsageError(f"method {method!r} does not train, so {key} does nothing: leave it out")


def _check_sections(asked: dict[str, Any]) -> None:
    """Raise UsageError for what is said of teachers other than by task."""
    for section in OF_TEACHERS:
        if section in asked and not isinstance(asked[section], dict):
            all_at_once = "; --teachers says it of all tasks" if section == "teachers" else ""
            raise UsageError(f"{section} is a section of settings ({section}.TASK=...), not a value{all_at_once}")


def _refuse_silent_kernel(asked: dict[str, Any], sampler: SamplerSpec) -> None:
    """Raise UsageError for a kernel that is asked for because it draws noise, where nobody says how much."""
    said = asked.get("sampler", {})
    if "kernel" in said and "eta" not in said and not sampler.eta and get_kernel(sampler.kernel).eta_max:
        raise UsageError(
            f"sampler.kernel {sampler.kernel} draws no noise at the default sampler.eta 0: set sampler.eta "
            "(0 says that none is meant)"
        )


def _refuse_misspelt(source: object) -> None:
    """Raise UsageError for teachers from what is no folder, but nearly a word that is known."""
    told = str(source)
    if told not in TRAINED_HERE and get_close_matches(told, TRAINED_HERE, 1, cutoff=0.7) and not Path(told).exists():
        raise UsageError(f"{unknown('source of teachers', told, TRAINED_HERE)}, or a folder")


def _refuse_idle(options: Any, before: dict[str, Any]) -> None:
    """Raise UsageError where --set changes a section of a method's options that does nothing under the others, which
    would give the same run another name; `before` are the settings of recipe and preset."""
    for section, cause in options.idle.items():
        was = _param(before, section)
        for name, value in getattr(options, section):
            default = type(getattr(options, section)).model_fields[name].default
            if value != (was if isinstance(was, dict) else {}).get(name, default):
                raise UsageError(f"params.{section}.{name} does nothing where {cause}: leave it out")


def _unsaid(spec: Spec, descriptor: Descriptor) -> Spec:
    """The spec without what holds anyway where nobody says it, so that a run has one name."""
    for section, values in (descriptor.own() | {"sampler": {"shift": descriptor.shift}}).items():
        said = getattr(spec, section)
        as_ever = {name: None for name, value in values.items() if _alike(getattr(said, name), value)}
        spec = spec.model_copy(update={section: said.model_copy(update=as_ever)})
    return spec


def _alike(said: object, own: object) -> bool:
    """Whether two values of a setting mean the same: the order of a list of names does not count."""
    return set(said) == set(own) if isinstance(said, tuple) and isinstance(own, tuple) else said == own


def _as_trained(evaluation: EvaluationSpec, sampler: SamplerSpec, shift: float) -> EvaluationSpec:
    """What is not said of evaluation is as in training; what is at its default there too stays unsaid. `shift` is the
    backbone's."""
    told = {
        "guidance": evaluation.guidance if evaluation.guidance is not None else sampler.guidance,
        "shift": evaluation.shift or sampler.shift,
        "table": evaluation.table or sampler.table,
    }
    if sampler.shift is None and told["shift"] == shift:
        told["shift"] = None
    if told["table"] == sampler.table == SamplerSpec().table:
        told["table"] = None
    return evaluation.model_copy(update=told)


def teacher_spec(spec: Spec, task: str) -> Spec:
    """How a task's teacher is trained: single-task RL by the backbone's recipe, with the run's seed and device."""
    trained = resolve(TEACHER_METHOD, [task], seed=spec.seed, backbone=spec.backbone)
    scorers = {task: spec.scorers[task]} if task in spec.scorers else {}
    return trained.model_copy(update={"device": spec.device, "scorers": scorers, "compute": spec.compute})


def _teacher_guidance(spec: Spec, task: str) -> float:
    if spec.teachers[task] in TRAINED_HERE:
        return teacher_spec(spec, task).evaluation.scale
    kept = Path(spec.teachers[task]) / "training.json"  # of `bench teach`: a copy, away from its run
    guidance = read_record(kept).get("guidance") if kept.is_file() else None
    if guidance is not None:
        return _written_guidance(guidance, f"{kept}: guidance", task)
    beside = Path(spec.teachers[task]).parent / "spec.json"
    if not beside.is_file():
        return spec.sampler.guidance
    try:
        guidance = read_record(beside)["spec"]["evaluation"]["guidance"]
    except (OSError, ValueError, KeyError, TypeError, DamagedError) as error:
        raise UsageError(
            f"{beside} is no run's spec.json ({error!r}): move it away or set teacher_guidance.{task}"
        ) from error
    return _written_guidance(guidance, f"{beside}: spec.evaluation.guidance", task)


def _recipe_file(descriptor: Descriptor, method: str) -> Path | None:
    """The backbone's recipe for a method, or the one for all others."""
    files = [descriptor.recipes / f"{name}.yaml" for name in (method, "default")] if descriptor.recipes else []
    return next((path for path in files if path.is_file()), None)


def _recipe(path: Path, method_class: Any, tasks: list[str], asked: dict) -> dict:
    """A recipe file's settings for what is asked.

    Its `by_task` section applies when the run has just that one task; `by_param` when a method's setting, as asked, by
    the recipe or by default, has that value: {engine: {grpo: {settings}}}.
    """
    recipe = read_yaml(path)
    by_task, by_param = recipe.pop("by_task", {}), recipe.pop("by_param", {})
    if len(tasks) == 1:
        merge(recipe, by_task.get(tasks[0], {}))
    for name, settings in by_param.items():
        default = method_class.Options.model_fields.get(name)
        told = [_param(asked, name), _param(recipe, name), default.default if default else None]
        value = next((v for v in told if v is not None), None)
        if isinstance(value, str):
            merge(recipe, settings.get(value, {}))
    return recipe


def _param(settings: dict, name: str) -> object:
    params = settings.get("params")
    return params.get(name) if isinstance(params, dict) else None


def preset_tasks(preset: Path | None, asked: list[str] | None) -> list[str]:
    """The tasks that were asked for, else a preset's, else all. Raises UsageError as `resolve` does."""
    return _tasks(_read_preset(preset) if preset else {}, asked)


def _tasks(preset: dict[str, Any], asked: list[str] | None) -> list[str]:
    told = _named(preset, "tasks", asked)
    return task_names(["all"] if told is None else told)


def _named(preset: dict[str, Any], key: str, asked: Any) -> Any:
    """A preset's method or tasks, taken out of it, or what was asked for. Raises UsageError if these differ."""
    told = preset.pop(key, None)
    if None not in (told, asked) and told != asked:
        raise UsageError(f"the preset is for {key} {told}, not {asked}")
    return told if asked is None else asked


def _read_preset(preset: Path) -> dict[str, Any]:
    """A preset's settings; a run's spec.json is one too, of all but its seed. Raises UsageError if method and backbone
    are no names, or tasks neither a list of names nor, as in --tasks, names with commas."""
    file = _preset_file(preset)
    content = read_yaml(file)
    if isinstance(content.get("spec"), dict) and "backbone_hash" in content:
        content = {key: value for key, value in content["spec"].items() if key != "seed"}
    for key in ("method", "backbone"):
        if key in content and not (isinstance(content[key], str) and content[key].strip()):
            raise UsageError(f"{file}: {key} should be a name, not {_short(content[key])}")
    if "tasks" in content:
        tasks = content["tasks"]
        if isinstance(tasks, str):
            content["tasks"] = tasks = [name.strip() for name in tasks.split(",")]
        if not isinstance(tasks, list) or not all(isinstance(name, str) and name for name in tasks):
            raise UsageError(f"{file}: tasks should be a list of names, or all, not {_short(tasks)}")
    return content


def _short(value: object) -> str:
    return repr(value)[:60]


def _preset_file(preset: Path) -> Path:
    """A preset that comes with the package by its name, else the file itself."""
    if preset.suffix or preset.exists() or len(preset.parts) > 1:
        return preset
    shipped = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if preset.name not in shipped:
        raise unknown("preset", preset.name, shipped)
    return shipped[preset.name]


def _written_guidance(value: Any, where: str, task: str) -> float:
    """A guidance scale that a file beside a teacher holds, under the setting's own rule. Raises UsageError."""
    try:
        return TypeAdapter(Guidance).validate_python(value, strict=True)
    except (ValidationError, OverflowError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is too large"
        raise UsageError(
            f"{where} is {repr(value)[:60]}, which is no guidance scale ({cause}): mend it or set "
            f"teacher_guidance.{task}"
        ) from error
