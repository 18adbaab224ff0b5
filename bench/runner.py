"""Carry out one spec from start to summary."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.backbones.descriptor import Descriptor
from bench.backbones.flow import FlowBackbone
from bench.errors import MissingError, UsageError
from bench.evaluate import Evaluation
from bench.files import write_atomic
from bench.hashing import text_hash
from bench.lab import EMA, Lab
from bench.loop import Loop, Progress
from bench.provenance import record
from bench.registry import find
from bench.spec import Spec, describe
from bench.store import Run
from bench.task import Task
from bench.teachers import Teacher, locate, mount, to_train

Say = Callable[[str], None]
Listen = Callable[[str, Progress], None]


@dataclass
class Session:
    """What several runs of one process share: the result folder and how to talk to the user."""

    root: Path
    say: Say = lambda _: None
    listen: Listen = lambda _label, _progress: None


def load_backbone(name: str, device: str) -> FlowBackbone:
    """Load a registered backbone onto a device; raises MissingError for a GPU that is not there."""
    check_device(device)
    return describe(name).load(device)


def check_device(device: str) -> None:
    """Raise MissingError for a GPU that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError(f"device {device!r} is asked for but torch sees no GPU; use --set device=cpu")


def load_tasks(names: tuple[str, ...], world: str, scorers: dict[str, dict[str, str]] | None = None) -> dict[str, Task]:
    """task -> Task for a backbone's world; `scorers` as in a spec."""
    return {name: find("task", name)(world, (scorers or {}).get(name)) for name in names}


def execute(spec: Spec, session: Session) -> dict:
    """Run a spec, resume it, or return its summary at once. Trains missing teachers first."""
    check_device(spec.device)
    descriptor = describe(spec.backbone)
    fingerprint = descriptor.fingerprint()
    run = Run(session.root, spec, fingerprint)
    if run.summary:
        refuse_changed(
            run,
            {task: t["hash"] for task, t in run.summary["teachers"].items()},
            {task: t.hash for task, t in locate(spec, descriptor, session.root, fingerprint).items()},
        )
        session.say(f"already finished: {run.folder}")
        return run.summary
    for teacher_run in to_train(spec, session.root, fingerprint):
        session.say(f"training the teacher for {teacher_run.spec.tasks[0]}")
        execute(teacher_run.spec, session)
    teachers = locate(spec, descriptor, session.root, fingerprint)
    with run.lock():
        run.open()
        entry = record(spec.device) | {"teachers": {task: t.hash for task, t in teachers.items()}}
        for earlier in run.rows("provenance.jsonl"):
            refuse_changed(run, earlier["teachers"], entry["teachers"])
        backbone = load_backbone(spec.backbone, spec.device)
        lab = equip(spec, descriptor, backbone, teachers)
        method_class = find("method", spec.method)
        method = method_class(method_class.Options.model_validate(spec.params))
        loop = Loop(run, lab, method, descriptor.shift)
        run.append("provenance.jsonl", entry)
        session.say(f"run folder: {run.folder}")
        label = f"{spec.method} on {', '.join(spec.tasks)}, seed {spec.seed}"
        loop.train(lambda progress: session.listen(label, progress))
        backbone.adapters.save(EMA, run.folder / "adapter", base=f"{spec.backbone}:{fingerprint}")
        summary = _summarise(loop, teachers, session, descriptor.base_guidance or {})
        run.finish(summary)
        return summary


def equip(spec: Spec, descriptor: Descriptor, backbone: FlowBackbone, teachers: dict[str, Teacher]) -> Lab:
    """The laboratory that a spec describes, with its teachers mounted on the backbone."""
    return Lab(
        backbone=backbone,
        tasks=load_tasks(spec.tasks, descriptor.world, spec.scorers),
        teachers=mount(teachers, backbone),
        teacher_guidance=spec.teacher_guidance,
        sampler=spec.sampler.build(descriptor.shift),
        guidance=spec.sampler.guidance,
        seed=spec.seed,
    )


def refuse_changed(run: Run, before: dict[str, str], now: dict[str, str]) -> None:
    """Raise UsageError if a teacher's hash is not what the run was begun with."""
    changed = [task for task in now if before.get(task) != now[task]]
    if changed:
        raise UsageError(
            f"{run.folder} was begun with another teacher for {', '.join(changed)}; "
            "move it away or use another --results"
        )


def _summarise(loop: Loop, teachers: dict[str, Teacher], session: Session, base_guidance: dict[str, float]) -> dict:
    """Base at its best guidance, every teacher and the student on every task, with cost."""
    run, spec = loop.run, loop.spec
    last = [row for row in run.rows("evaluations.jsonl") if row["step"] == loop.step]
    models: dict[str, dict[str, dict]] = {"student": {row["task"]: _strip(row) for row in last}}
    references = Reference(loop, session.root / "cache")
    models["base"] = {
        t: references.of(None, t, "base", base_guidance.get(t, spec.evaluation.guidance)) for t in spec.tasks
    }
    for name, teacher in teachers.items():
        scale = spec.teacher_guidance[name]
        models[f"teacher {name}"] = {t: references.of(teacher.adapter, t, teacher.hash, scale) for t in spec.tasks}
    loop.lab.backbone.meter.settle()
    return {
        "method": spec.method,
        "seed": spec.seed,
        "folder": run.folder.name,
        "split": spec.evaluation.split,
        "updates": loop.step,
        "cost": loop.lab.backbone.meter.state(),
        "scorers": {task: loop.lab.tasks[task].scorer_name for task in spec.tasks},
        "teachers": {task: {"source": spec.teachers[task], "hash": t.hash} for task, t in teachers.items()},
        "models": models,
    }


def _strip(row: dict) -> dict:
    return {key: row[key] for key in ("task", "headline", "strata", "rows")}


class Reference:
    """Evaluations of models that do not change (base, teachers), kept on disk between runs."""

    def __init__(self, loop: Loop, folder: Path):
        self.loop, self.folder = loop, folder

    def of(self, adapter: str | None, task: str, model: str, guidance: float) -> dict:
        """Evaluation record of an adapter, from the cache or made now."""
        import json

        settings = self.loop.spec.evaluation
        key = text_hash([
            self.loop.run.backbone_hash, model, task, self.loop.lab.tasks[task].scorer_name, guidance, settings.steps,
            settings.split,
        ])  # fmt: skip
        path = self.folder / f"evaluation-{key}.json"
        if path.exists():
            return json.loads(path.read_text())
        with self.loop.lab.backbone.meter.purpose("references"):
            result: Evaluation = self.loop.evaluate(adapter, task, guidance)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(result.record()).encode())
        return result.record()
