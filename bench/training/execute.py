"""Carries out one spec: trains missing teachers, then the student, evaluates the models and writes the summary."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.analysis.alarms import alarms
from bench.api.features import FeatureSpace
from bench.api.lab import EMA, STUDENT, Lab
from bench.backbones.adapter_files import adapter_hash
from bench.backbones.flow import FlowBackbone
from bench.backbones.teacher_files import Teacher, find_teacher
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import describe
from bench.config.scorers import FEATURES
from bench.config.spec import Spec
from bench.config.trackers import check_trackers
from bench.errors import BenchError, UsageError
from bench.registry import find
from bench.scoring.folders import PICTURES
from bench.scoring.loading import load_features, load_tasks
from bench.store.provenance import code_hash, record
from bench.store.run import Run
from bench.system.background import finish
from bench.system.devices import check_device
from bench.system.interrupts import stopping
from bench.system.workers import ALONE, Workers
from bench.training.guidance import at_best_guidance, at_the_edge
from bench.training.loop import Loop, Progress
from bench.training.out_of_memory import memory
from bench.training.points import evaluate_points
from bench.training.references import References
from bench.training.same_scorers import check_scored, refuse_other_scorers
from bench.training.start import check_start
from bench.training.teachers import locate, mount, to_train, training_nfe
from bench.training.tracking import mirrored
from bench.weights.hub import adapter_folder, model_name

NO_GPU = "install a CUDA build of torch if this machine has a GPU, or use --set device=cpu"
Say = Callable[[str], None]
Listen = Callable[[str, Progress], None]

CHANGED_CODE = (
    "note: the code of the project or of a plug-in has changed since this run was started, so its updates were made by "
    "different code (provenance.jsonl has the hashes); delete the run's folder to start it again"
)
CHANGED_SINCE = (
    "note: the code of the project or of a plug-in has changed since this run was made (provenance.jsonl has its "
    "hash); delete the run's folder to make it again with the code of today"
)


@dataclass
class Session:
    """What all runs of one command have in common: the results folder, the processes that share each run, callbacks."""

    root: Path
    workers: Workers = ALONE
    say: Say = lambda _: None
    """Called with a line of text for the user."""
    listen: Listen = lambda _label, _progress: None
    """Called with a run's label and its progress after every update, held-out evaluation and batch of evaluations."""


def load_backbone(name: str, device: str, compute: Compute, cache: Path | None = None) -> FlowBackbone:
    """Load a backbone onto a device; encoded prompts are cached under `cache`. Raises MissingError without the GPU."""
    check_device(device, "backbone", NO_GPU)
    return describe(name).load(device, compute, cache / "prompts" if cache else None)


def execute(spec: Spec, session: Session) -> dict:
    """Carry out a run and return its summary; a run that was started resumes, a finished one is only read.

    Teachers that have to be trained are trained first. Raises BenchError, with a finished or resumable run left intact.
    """
    check_device(spec.device, "backbone", NO_GPU)
    descriptor = describe(spec.backbone)
    fingerprint = descriptor.fingerprint()
    workers = session.workers
    run = Run(session.root, spec, fingerprint, writes=workers.main)
    # All processes act on what the main one read: a file that appears in between must not send them different ways.
    if (summary := workers.agreed(run.summary)) is not None:
        teachers = locate(spec, descriptor, session.root, fingerprint)
        last = run.starts()[-1:]  # empty for a run whose record was taken away
        for start in last:
            refuse_changed(run, start["teachers"], origins(spec, teachers), "a different adapter or teacher")
            refuse_changed(run, start.get("inputs", {}), inputs_of(spec), "different files")
        check_scored(run)
        session.say(f"already finished: {run.folder}")
        if made_by_other_code(last, code_hash()):
            session.say(CHANGED_SINCE)
        return summary
    run.check_place()
    check_trackers(spec.trackers)
    # Everything that can be refused without loading weights is refused before a teacher is trained for hours.
    check_start(spec)
    untrained = workers.agreed(to_train(spec, session.root, fingerprint))
    if untrained and (features := load_features(descriptor.world, spec.scorers, spec.device)):
        _ = features.name  # raises now, and not after hours of training, if it has no weights
    for teacher_run in untrained:
        session.say(f"training the teacher for {teacher_run.spec.tasks[0]}")
        execute(teacher_run.spec, session)
    teachers = locate(spec, descriptor, session.root, fingerprint)
    training_nfe(teachers)  # raises on a damaged teacher summary now rather than when the run's own is written
    if spec.device == "cpu" and torch.cuda.is_available():
        session.say("note: a GPU is available but device is cpu; use it with --set device=cuda")
    with run.lock():
        run.open()
        computed = {
            "compute": spec.compute.model_dump(),
            "scorers": spec.scorers,
            "processes": workers.count,
            "teachers": origins(spec, teachers),
        }
        inputs = inputs_of(spec)
        entry = record(spec.device) | computed | ({"inputs": inputs} if inputs else {})
        starts = run.starts()
        for earlier in starts:
            refuse_changed(run, earlier["teachers"], entry["teachers"], "a different adapter or teacher")
            refuse_changed(run, earlier.get("inputs", {}), inputs, "different files")
        device = workers.device(spec.device)
        with memory("loading", spec):
            backbone = load_backbone(spec.backbone, device, spec.compute, session.root / "cache")
            lab = equip(spec, descriptor, backbone, teachers)
        lab.workers = workers
        method_class = find("method", spec.method)
        method = method_class(method_class.Options.model_validate(spec.params))
        loop = Loop(run, lab, method, descriptor.evaluation_sampler(spec))
        loop.features = load_features(descriptor.world, spec.scorers, str(backbone.device))
        with memory("loading", spec):
            try_scorers(lab, spec.evaluation.split, loop.features)
        scorers = {name: task.scorer_name for name, task in lab.tasks.items()}
        if loop.features:
            scorers[FEATURES] = loop.features.name
        for earlier in starts:
            refuse_other_scorers(run.folder, earlier.get("scorer_names"), scorers)
        if made_by_other_code(starts, entry["code"]):
            session.say(CHANGED_CODE)
        run.append("provenance.jsonl", entry | {"scorer_names": scorers})
        session.say(f"run folder: {run.folder}")
        early = spec.too_short(spec.budget.updates) if spec.budget.updates else ""
        if early:
            session.say(f"note: {early}")
        label = f"{spec.method} on {', '.join(spec.tasks)}, seed {spec.seed}"
        with mirrored(run, workers.main, session.say) as send:

            def listen(progress: Progress) -> None:
                if not progress.doing:
                    send()
                session.listen(label, progress)

            try:
                with stopping() as loop.stop_requested:
                    loop.listen = listen
                    loop.train()
            finally:
                finish()
        # Budgets in NFE or seconds show only now how many updates they allowed.
        if (late := spec.too_short(loop.step)) and not early:
            session.say(f"note: {late}")
        method.show(lab, None)
        if workers.main:
            backbone.adapters.save(EMA, run.weights, base=model_name(backbone.source))
        summary = workers.agreed(_summarise(loop, teachers, session, descriptor))
        for remark in summary.get("remarks", []):
            session.say(f"note: {remark}")
        run.finish(summary)
    workers.agreed(None)  # a barrier: no process may look for the summary before it is written
    return summary


def equip(spec: Spec, descriptor: Descriptor, backbone: FlowBackbone, teachers: dict[str, Teacher]) -> Lab:
    """The Lab that a spec describes, with its teachers loaded on the backbone."""
    return Lab(
        backbone=backbone,
        tasks=load_tasks(spec.tasks, descriptor.world, spec.scorers, str(backbone.device), spec.rewards),
        teachers=mount(teachers, backbone),
        teacher_guidance=spec.teacher_guidance,
        sampler=descriptor.sampler(spec),
        guidance=spec.sampler.guidance,
        seed=spec.seed,
    )


def origins(spec: Spec, teachers: dict[str, Teacher]) -> dict[str, str]:
    """Hashes of the adapters that a run depends on: task -> its teacher, STUDENT -> the adapter that it starts from."""
    hashes = {task: teacher.hash for task, teacher in teachers.items()}
    if spec.lora.start:
        hashes[STUDENT] = adapter_hash(adapter_folder(spec.lora.start))
    return hashes


def try_scorers(lab: Lab, split: str, features: FeatureSpace | None = None) -> None:
    """Score one grey image with every task's scorer, so that a missing one is noticed before training starts.

    The same for the feature space.

    Raises what the scorers raise, and BenchError for a scorer that does not give the task's headline metric.
    """
    grey = lab.backbone.decode(torch.zeros(1, *lab.backbone.latent_shape, device=lab.backbone.device))
    if features:
        _ = features.name, features.features(grey)
    for task in lab.tasks.values():
        prompt = task.prompts(split)[0]
        _ = task.scorer_name  # reading the name contacts a remote scorer
        scores = task.score(grey, [prompt])
        if task.headline not in {"reward", *scores.metrics}:
            given = ", ".join(scores.metrics) or "rewards only"
            raise BenchError(f"the scorer of {task.name!r} gives {given}, not the headline metric {task.headline!r}")


def made_by_other_code(starts: list[dict], now: str) -> bool:
    """Whether any of these starts of a run recorded another hash of the code; records of version 0.1 have none."""
    return any(start.get("code", now) != now for start in starts)


def inputs_of(spec: Spec) -> dict[str, str]:
    """name -> hash of the user's files that the method of a run learns from."""
    return find("method", spec.method).inputs(spec)


def refuse_changed(run: Run, before: dict[str, str], now: dict[str, str], what: str) -> None:
    """Raise UsageError if a hash (of a teacher, the student's start, the user's files) differs from the recorded one.

    `what` says in the message with what the run was started.
    """
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UsageError(
            f"{run.folder} was started with {what} for {', '.join(changed)}; "
            "move it away or use another --results folder"
        )


def _summarise(loop: Loop, teachers: dict[str, Teacher], session: Session, descriptor: Descriptor) -> dict:
    """The run's summary: cost, and the student, the base at its best guidance and all teachers on every task."""
    run, spec = loop.run, loop.spec
    costs = {task: cost for task, cost in training_nfe(teachers).items() if not math.isnan(cost)}
    rows = loop.workers.agreed(run.rows("evaluations.jsonl"))
    student = {row["task"]: _strip(row) for row in rows if row["step"] == loop.step}
    references = References(loop, session.root / "cache", descriptor.evaluations, session.say)
    rivals = {f"teacher {name}": (teacher.model, teacher.hash) for name, teacher in teachers.items()}
    compared: dict[str, tuple[str | None, str]] = {"base": (None, "base"), **rivals}
    grid: dict[str, Any] = {}
    own = loop.workers.agreed(find_teacher("student", str(run.weights)).hash if loop.workers.main else "")
    if spec.evaluation.guidance_grid:
        grid = at_best_guidance({"student": (EMA, own)} | compared, references, spec, student)
        models = grid.pop("models")
    else:
        models = {"student": student} | {model: {} for model in compared}
        for model, (adapter, weights) in compared.items():
            for task in spec.tasks:
                scale = descriptor.usual_guidance(model, task, spec)
                models[model][task] = references.of(model, adapter, task, weights, scale)
        if spec.evaluation.pictures:
            folder = f"{run.folder.name}/{PICTURES}"
            references.pictures["student"] = {task: f"{folder}/{task}" for task in spec.tasks}
    points = {
        point: {task: _strip(row) for task, row in rows.items()}
        for point, rows in evaluate_points(loop, session.say).items()
    }
    summary = {
        "method": spec.method,
        "seed": spec.seed,
        "folder": run.folder.name,
        "split": spec.evaluation.split,
        "updates": loop.step,
        "weights": own,
        "cost": loop.lab.backbone.meter.whole(loop.workers) | {"peak_bytes": loop.peak_bytes()},
        "scorers": {task: loop.lab.tasks[task].scorer_name for task in spec.tasks},
        "teachers": {
            task: {
                "source": spec.teachers[task],
                "hash": teacher.hash,
                "evaluations": costs.get(task),
            }
            for task, teacher in teachers.items()
        },
        "models": models,
    } | grid
    if points:
        summary["points"] = points
    if references.pictures:
        summary["pictures"] = references.pictures
    # A run that an alarm may end has its own start among the rows, at its own guidance scale.
    raised = alarms(rows, None if spec.evaluation.stop_on_alarm else grid.get("along", models)["base"])
    remarks = [*loop.method.remarks(run.rows("metrics.jsonl")), *map(str, raised)]
    if spec.evaluation.guidance_grid:
        remarks += at_the_edge(summary["guidance"], spec)
    if spec.evaluation.stop_on_alarm and loop.fraction < 1:
        remarks.append(f"evaluation.stop_on_alarm ended the run at {loop.fraction:.0%} of its budget")
    if remarks:
        summary["remarks"] = remarks
    return summary


def _strip(row: dict) -> dict:
    """The part of a row of evaluations.jsonl that the summary keeps."""
    kept = ("task", "headline", "strata", "rows", "prompts")
    return {key: row[key] for key in kept if key in row}
