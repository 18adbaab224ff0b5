"""How a command's options become a spec: defaults, the backbone's recipe, a preset, and overrides."""

import json
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bench.config.bounds import Guidance
from bench.config.compute import Compute
from bench.config.contradictions import leaves
from bench.config.descriptor import Descriptor
from bench.config.families import describe_pipeline, is_address
from bench.config.optimizers import check_optimizer
from bench.config.rewards import all_scorers, check_rewards, completed, scorers_of
from bench.config.scorers import FEATURES, check_scorers, check_worlds, words
from bench.config.settings import first_problem, merge, parse_override, read_yaml
from bench.config.spec import CHOICE, EvaluationSpec, LoraSpec, SamplerSpec, Spec
from bench.errors import DamagedError, UsageError, unknown
from bench.registry import broken, find, guarded, task_names
from bench.sampler.transitions import get_kernel
from bench.system.files import read_record
from bench.weights.hub import check_source

TEACHER_METHOD = "single_task"
"""The method that trains teachers."""
PRESETS = Path(__file__).parent / "presets"
"""Folder of the presets that come with the package."""
OF_TEACHERS = ("teachers", "teacher_guidance")
"""Sections that map tasks to settings of their teachers."""
TRAINING = (
    "budget", "optimizer.", "ema.", "probes.", "checkpoint_every", "sampler.kernel", "sampler.eta", "sampler.steps",
)  # fmt: skip
"""Prefixes of the keys that affect training only."""
TRAINED_HERE = ("shipped", "train")
"""Values of `teachers.TASK` that stand for a teacher trained by this project's recipe."""


def describe(backbone: str) -> Descriptor:
    """The descriptor of a registered backbone, or of the pipeline at a path or hub address. Raises UsageError."""
    if is_address(backbone):
        return describe_pipeline(backbone)
    descriptor = guarded("backbone", backbone, find("backbone", backbone))
    if not isinstance(descriptor, Descriptor):
        raise broken("backbone", backbone, f"returns {type(descriptor).__name__} instead of a Descriptor")
    return descriptor


def resolve(
    method: str | None,
    tasks: list[str] | None,
    seed: int = 0,
    backbone: str | None = None,
    preset: Path | None = None,
    overrides: list[str] | None = None,
    teachers: str | None = None,
    checked: bool = True,
) -> Spec:
    """Build a spec from defaults <- the backbone's recipe <- the preset <- overrides. Raises UsageError.

    `tasks` may be ["all"]. `preset` is a file, a run's spec.json, or the name of one of bench/config/presets. If
    method, tasks or backbone is None, the preset's is used; without one, tasks are all and the backbone is micro. Of
    a preset's teachers only those of the run's tasks are used. `overrides` are "dotted.key=value" with YAML values.
    `teachers` is 'shipped', 'train' or a folder with one adapter folder per task, and overrides the preset's. With
    `checked` false, settings are looked up without the user's own: whether the method can run, and whether the tasks
    have all the settings that they need, is then not asked.
    """
    asked = _read_preset(preset) if preset else {}
    method, tasks = _named(asked, "method", method), _tasks(asked, tasks)
    _check_sections(asked)
    # The preset may be of a run with more tasks; entries for the others would be rejected as unknown below.
    for section in OF_TEACHERS:
        if section in asked:
            of_all_tasks = asked[section]
            asked[section] = {task: value for task, value in of_all_tasks.items() if task in tasks}
    if method is None:
        raise UsageError("name a method with --method, or a preset that names one")
    backbone = backbone or asked.get("backbone", "micro")
    asked.pop("backbone", None)
    if teachers:
        asked.pop("teachers", None)
    method_class = find("method", method)
    descriptor = describe(backbone)
    preset_alone = deepcopy(asked)
    by_user: dict[str, Any] = {}
    for override in overrides or []:
        merge(asked, parse_override(override))
        merge(by_user, parse_override(override))
    _check_sections(asked)  # again: an override can replace a section by a value
    settings = _defaults(descriptor, method, tasks, asked)
    # What the settings would be without --set, to find --set values that have no effect.
    before = deepcopy(settings)
    merge(before, preset_alone)
    merge(settings, asked)
    fixed = {"method": method, "backbone": backbone, "tasks": tasks, "seed": seed}
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise UsageError(f"{key!r} is set by its own option, not by --set")
    if method_class.needs.teachers:
        source = teachers or ("shipped" if descriptor.teachers else "train")
        named = source in TRAINED_HERE
        sources = {task: source if named else str(Path(source) / task) for task in tasks}
        settings["teachers"] = sources | settings.get("teachers", {})
        for given in [source, *settings["teachers"].values()]:
            _refuse_misspelt(given)
    elif teachers or settings.get("teachers") or settings.get("teacher_guidance"):
        raise UsageError(f"method {method!r} takes no teachers")
    settings["scorers"] = words(settings.get("scorers", {}))
    try:
        spec = Spec.model_validate(settings | fixed)
        options = method_class.Options.model_validate(spec.params)
    except ValidationError as error:
        in_params = error.title == method_class.Options.__name__
        model, prefix = (method_class.Options, ("params",)) if in_params else (Spec, ())
        raise UsageError(first_problem(error, model, prefix)) from error
    _refuse_idle(options, before)
    # From here on values are normalised, so that runs that compute the same have the same hash.
    spec = _without_defaults(spec.model_copy(update={"params": options.model_dump()}), descriptor)
    evaluation = _as_trained(spec.evaluation, spec.sampler, descriptor.levels_at(spec.compute).shift)
    spec = spec.model_copy(update={"evaluation": evaluation})
    _refuse_silent_kernel(asked, spec.sampler)
    if spec.full_finetuning:
        spec = _without_adapter(spec, by_user)
    check_optimizer(spec.optimizer)
    if spec.lora.start:
        check_source(spec.lora.start, "lora.start")
    descriptor.check(spec.compute)
    if spec.evaluation.resolution:
        spec = _with_evaluation_resolution(spec, descriptor)
    if spec.probes.interference and len(tasks) == 1:
        raise UsageError("probes.interference compares tasks, but the run has only one: leave it out")
    for section in OF_TEACHERS:
        for task in getattr(spec, section):
            if task not in tasks:
                raise unknown(f"task in {section}", task, tasks)
    spec = spec.model_copy(update={"rewards": completed(spec.rewards, tasks)})
    scorers = all_scorers(tasks, spec.rewards)
    check_scorers(spec.scorers, scorers, descriptor.world)
    if checked:
        check_worlds(spec.scorers, scorers, descriptor.world)
        chosen_on = (CHOICE,) if spec.evaluation.guidance_grid else ()
        splits = tuple(dict.fromkeys((*(("train",) if method_class.trains else ()), spec.evaluation.split, *chosen_on)))
        _check_splits(tasks, splits)
        check_rewards(spec.rewards, spec.scorers, tasks, descriptor.world, splits)
    if spec.evaluation.guidance_grid and method_class.points(spec):
        raise UsageError(
            "evaluation.guidance_grid chooses a scale for the run's student only, not for the further students of "
            "params.preference: leave one of them out"
        )
    if spec.teachers:
        # The default scales are written into the spec, because the files that they come from may change.
        guidance = {task: _teacher_guidance(spec, task) for task in tasks if task not in spec.teacher_guidance}
        spec = spec.model_copy(update={"teacher_guidance": guidance | spec.teacher_guidance})
    if spec.compute.negative_prompt and not _guides(spec, options):
        raise UsageError("compute.negative_prompt has no effect at guidance scale 1: set sampler.guidance as well")
    sampler = descriptor.sampler(spec)
    _ = descriptor.evaluation_sampler(spec)  # raises for settings that the model does not have
    if checked:
        method_class.check(spec, sampler)
    return spec


def refuse_training(method: str, overrides: list[str]) -> None:
    """Raise UsageError if `overrides` sets a training setting of a method that does not train."""
    if find("method", method).trains:
        return
    for text in overrides:
        for key in leaves(parse_override(text)):
            if key.startswith(TRAINING):
                raise UsageError(f"method {method!r} does not train, so {key} does nothing: leave it out")


def _check_sections(asked: dict[str, Any]) -> None:
    """Raise UsageError if a section of teachers is a single value instead of one per task."""
    for section in OF_TEACHERS:
        if section in asked and not isinstance(asked[section], dict):
            hint = "; --teachers sets it for all tasks" if section == "teachers" else ""
            raise UsageError(f"{section} is a section of settings ({section}.TASK=...), not a value{hint}")


def _refuse_silent_kernel(asked: dict[str, Any], sampler: SamplerSpec) -> None:
    """Raise UsageError if a stochastic kernel is set without an eta: at the default eta of 0 it would draw no noise."""
    given = asked.get("sampler", {})
    if "kernel" not in given or "eta" in given or sampler.eta:
        return
    if get_kernel(sampler.kernel).eta_max:
        raise UsageError(
            f"sampler.kernel {sampler.kernel} draws no noise at the default sampler.eta 0: set sampler.eta "
            "(0 if no noise is intended)"
        )


def _guides(spec: Spec, options: Any) -> bool:
    """Whether any model of a run is called at another guidance scale than 1; `options` are its method's."""
    used = {key: value for key, value in spec.params.items() if key not in options.idle}
    of_method = [value for key, value in leaves(used).items() if key.endswith("guidance")]
    evaluated = (spec.evaluation.scale, *spec.evaluation.guidance_grid)
    return {1.0} != {spec.sampler.guidance, *evaluated, *spec.teacher_guidance.values(), *of_method}


def _without_adapter(spec: Spec, asked: dict[str, Any]) -> Spec:
    """The spec of a student with all weights, without LoRA settings of recipe and preset.

    Raises UsageError for LoRA settings among those that the user `asked` for, and for weights that are split over
    processes.
    """
    if "lora" in asked:
        key = next(iter(leaves({"lora": asked["lora"]})))
        raise UsageError(f"{key} has no effect with full_finetuning, which trains no adapter: leave it out")
    if spec.compute.shard:
        raise UsageError("compute.shard splits frozen weights over processes, and full_finetuning trains them all")
    return spec.model_copy(update={"lora": LoraSpec()})


def _refuse_misspelt(source: object) -> None:
    """Raise UsageError if a teacher's source is not an existing folder but resembles one of the known words."""
    given = str(source)
    if given in TRAINED_HERE:
        return
    if get_close_matches(given, TRAINED_HERE, 1, cutoff=0.7) and not Path(given).exists():
        raise UsageError(f"{unknown('source of teachers', given, TRAINED_HERE)}, or a folder")


def _refuse_idle(options: Any, before: dict[str, Any]) -> None:
    """Raise UsageError if --set changes an idle section, or an idle setting, of a method's options.

    The change would have no effect but give the same run a different hash. `before` are the settings of the recipe
    and the preset, which may configure what is idle.
    """
    for place, cause in options.idle.items():
        section, _, setting = place.partition(".")
        values = getattr(options, section)
        earlier = _param(before, section)
        if not isinstance(earlier, dict):
            earlier = {}
        for name, value in values:
            if setting not in ("", name):
                continue
            default = type(values).model_fields[name].default
            if value != earlier.get(name, default):
                raise UsageError(f"params.{section}.{name} does nothing because {cause}: leave it out")


def _without_defaults(spec: Spec, descriptor: Descriptor) -> Spec:
    """The spec without values that equal the backbone's own, so that equal runs have equal hashes."""
    own = descriptor.own() | {"sampler": {"shift": descriptor.levels_at(spec.compute).shift}}
    for section, values in own.items():
        given = getattr(spec, section)
        redundant = {name: None for name, value in values.items() if _alike(getattr(given, name), value)}
        spec = spec.model_copy(update={section: given.model_copy(update=redundant)})
    return spec


def _with_evaluation_resolution(spec: Spec, descriptor: Descriptor) -> Spec:
    """The spec without a resolution of evaluations that is training's. Raises UsageError for an impossible one."""
    try:
        descriptor.check(spec.evaluation_compute)
    except UsageError as error:
        raise UsageError(str(error).replace("compute.resolution", "evaluation.resolution")) from error
    own = descriptor.own().get("compute", {}).get("resolution")
    if spec.evaluation.resolution != (spec.compute.resolution or own):
        return spec
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"resolution": None})})


def _alike(given: object, own: object) -> bool:
    """Whether two values of a setting mean the same; the order of a list of names does not matter."""
    if isinstance(given, tuple) and isinstance(own, tuple):
        return set(given) == set(own)
    return given == own


def _as_trained(evaluation: EvaluationSpec, sampler: SamplerSpec, shift: float | None) -> EvaluationSpec:
    """The evaluation settings with those that are not set copied from training.

    Values that are at their defaults in training too stay None, as in the records of earlier runs. `shift` is the
    backbone's.
    """
    values = {
        "guidance": evaluation.guidance if evaluation.guidance is not None else sampler.guidance,
        "shift": evaluation.shift or sampler.shift,
        "table": evaluation.table or sampler.table,
    }
    if sampler.shift is None and values["shift"] == shift:
        values["shift"] = None
    if values["table"] == sampler.table == SamplerSpec().table:
        values["table"] = None
    return evaluation.model_copy(update=values)


def _check_splits(tasks: list[str], splits: tuple[str, ...]) -> None:
    """Raise UsageError for a task that has no prompts of one of the splits."""
    for task in tasks:
        has = find("task", task).splits
        for split in splits:
            if split not in has:
                raise UsageError(
                    f"{task} has {', '.join(has)} prompts only, no {split} prompts: use it with bench eval"
                )


def teacher_spec(spec: Spec, task: str) -> Spec:
    """The spec of a task's teacher: single-task RL by the backbone's recipe, with the run's seed and rewards."""
    # What shapes results is checked too: a backbone may not draw at its default resolution. A negative prompt would be
    # refused for a teacher without guidance.
    names = [name for name in Compute.RESULT if name != "negative_prompt"]
    shaping = {name: value for name in names if (value := getattr(spec.compute, name)) is not None}
    trained = resolve(
        TEACHER_METHOD, [task], seed=spec.seed, backbone=spec.backbone, overrides=[f"compute={json.dumps(shaping)}"]
    )
    named = (*scorers_of(task, spec.rewards), FEATURES)
    scorers = {name: spec.scorers[name] for name in named if name in spec.scorers}
    rewards = {task: spec.rewards[task]} if task in spec.rewards else {}
    machine = {"device": spec.device, "scorers": scorers, "compute": spec.compute}
    found = trained.model_copy(update=machine | {"rewards": rewards})
    if not _guides(found, find("method", TEACHER_METHOD).Options.model_validate(found.params)):
        # Without effect there; with it, the same teacher would have another hash, and be trained again.
        found = found.model_copy(update={"compute": spec.compute.model_copy(update={"negative_prompt": ""})})
    return found


def _teacher_guidance(spec: Spec, task: str) -> float:
    """The guidance scale of a task's teacher when the user sets none. Raises UsageError for an invalid record."""
    if spec.teachers[task] in TRAINED_HERE:
        return _recipe_guidance(describe(spec.backbone), task)
    # `bench teach` copies the adapter out of the run's folder and writes this file beside it.
    kept = Path(spec.teachers[task]) / "training.json"
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
            f"{beside} is not the spec.json of a run ({error!r}): move it away or set teacher_guidance.{task}"
        ) from error
    return _written_guidance(guidance, f"{beside}: spec.evaluation.guidance", task)


def _recipe_guidance(descriptor: Descriptor, task: str) -> float:
    """The guidance scale at which the recipe's teacher of a task is evaluated."""
    settings = _defaults(descriptor, TEACHER_METHOD, [task], {})
    evaluation = EvaluationSpec.model_validate(settings.get("evaluation", {}))
    if evaluation.guidance is not None:
        return evaluation.guidance
    return SamplerSpec.model_validate(settings.get("sampler", {})).guidance


def _defaults(descriptor: Descriptor, method: str, tasks: list[str], asked: dict) -> dict[str, Any]:
    """The settings of a run before the user's: the backbone's, overridden by its recipe for the method."""
    settings: dict[str, Any] = {}
    merge(settings, descriptor.defaults())
    if path := _recipe_file(descriptor, method):
        merge(settings, _recipe(path, find("method", method), tasks, asked))
    return settings


def _recipe_file(descriptor: Descriptor, method: str) -> Path | None:
    """The backbone's recipe for a method, or else its recipe for all other methods; None without recipes."""
    files = [folder / f"{name}.yaml" for name in (method, "default") for folder in descriptor.recipes]
    return next((path for path in files if path.is_file()), None)


def _recipe(path: Path, method_class: Any, tasks: list[str], asked: dict) -> dict:
    """The settings of a recipe file that apply to a run.

    The section `by_task` applies to runs of that single task. The section `by_param` applies to runs in which an option
    of the method has the given value, whether the user, the recipe or the default sets it: {engine: {grpo: {...}}}.
    """
    recipe = read_yaml(path)
    by_task, by_param = recipe.pop("by_task", {}), recipe.pop("by_param", {})
    if len(tasks) == 1:
        merge(recipe, by_task.get(tasks[0], {}))
    for name, settings in by_param.items():
        default = method_class.Options.model_fields.get(name)
        candidates = [_param(asked, name), _param(recipe, name), default.default if default else None]
        value = next((v for v in candidates if v is not None), None)
        if isinstance(value, str):
            merge(recipe, settings.get(value, {}))
    return recipe


def _param(settings: dict, name: str) -> object:
    """A setting of the section `params`; None if it is not set."""
    params = settings.get("params")
    return params.get(name) if isinstance(params, dict) else None


def preset_tasks(preset: Path | None, asked: list[str] | None) -> list[str]:
    """The tasks that the user names, else the preset's, else all. Raises UsageError as `resolve` does."""
    return _tasks(_read_preset(preset) if preset else {}, asked)


def _tasks(preset: dict[str, Any], asked: list[str] | None) -> list[str]:
    names = _named(preset, "tasks", asked)
    return task_names(["all"] if names is None else names)


def _named(preset: dict[str, Any], key: str, asked: Any) -> Any:
    """The user's method or tasks, or else the preset's, which are removed from it. Raises UsageError if they differ."""
    preset_value = preset.pop(key, None)
    if None not in (preset_value, asked) and preset_value != asked:
        raise UsageError(f"the preset is for {key} {preset_value}, not {asked}")
    return preset_value if asked is None else asked


def _read_preset(preset: Path) -> dict[str, Any]:
    """A preset's settings. A run's spec.json is also a preset, of everything but its seed.

    Raises UsageError unless method and backbone are names and tasks a list of names or comma-separated names.
    """
    file = _preset_file(preset)
    content = read_yaml(file)
    if isinstance(content.get("spec"), dict) and "backbone_hash" in content:
        content = {key: value for key, value in content["spec"].items() if key != "seed"}
    for key in ("method", "backbone"):
        if key not in content:
            continue
        name = content[key]
        if not isinstance(name, str) or not name.strip():
            raise UsageError(f"{file}: {key} should be a name, not {_short(name)}")
    if "tasks" in content:
        tasks = content["tasks"]
        if isinstance(tasks, str):
            content["tasks"] = tasks = [name.strip() for name in tasks.split(",")]
        valid = isinstance(tasks, list) and all(isinstance(name, str) and name for name in tasks)
        if not valid:
            raise UsageError(f"{file}: tasks should be a list of names, or all, not {_short(tasks)}")
    return content


def _short(value: object) -> str:
    return repr(value)[:60]


def _preset_file(preset: Path) -> Path:
    """The file of a preset; a bare name means one that comes with the package. Raises UsageError if there is none."""
    if preset.suffix or preset.exists() or len(preset.parts) > 1:
        return preset
    shipped = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if preset.name not in shipped:
        raise unknown("preset", preset.name, shipped)
    return shipped[preset.name]


def _written_guidance(value: Any, where: str, task: str) -> float:
    """A guidance scale from a file beside a teacher, with the bounds of the setting. Raises UsageError."""
    try:
        return TypeAdapter(Guidance).validate_python(value, strict=True)
    except (ValidationError, OverflowError) as error:
        cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is too large"
        raise UsageError(
            f"{where} is {repr(value)[:60]}, which is not a valid guidance scale ({cause}): correct it or set "
            f"teacher_guidance.{task}"
        ) from error
