"""Carry out one spec from start to summary."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.api.lab import EMA, STUDENT, Lab
from bench.backbones.adapter_files import adapter_hash
from bench.backbones.flow import FlowBackbone
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import BenchError, DamagedError, UsageError, explained, one_line
from bench.hashing import text_hash
from bench.registry import find
from bench.scoring.folders import PICTURES
from bench.scoring.loading import load_tasks
from bench.store.provenance import record
from bench.store.run import Run
from bench.store.shapes import check_evaluation
from bench.system.devices import check_device
from bench.system.files import is_there, read_record, write_atomic
from bench.system.interrupts import stopping
from bench.system.workers import ALONE, Workers
from bench.training.evaluate import Evaluation
from bench.training.loop import Loop, Progress
from bench.training.out_of_memory import memory
from bench.training.same_scorers import check_scored, refuse_other_scorers
from bench.training.start import read_start
from bench.training.teachers import Teacher, locate, mount, to_train, training_nfe
from bench.weights.hub import adapter_folder, model_name

NO_GPU = "install a CUDA build of torch where there is one, or use --set device=cpu"
Say = Callable[[str], None]
Listen = Callable[[str, Progress], None]


@dataclass
class Session:
    """What several runs of one process share: the result folder and how to talk to the user."""

    root: Path
    workers: Workers = ALONE
    say: Say = lambda _: None
    listen: Listen = lambda _label, _progress: None


def load_backbone(name: str, device: str, compute: Compute, cache: Path | None = None) -> FlowBackbone:
    """Load a backbone onto a device; encoded prompts are kept in `cache`. Raises MissingError for a missing GPU."""
    check_device(device, "backbone", NO_GPU)
    return describe(name).load(device, compute, cache / "prompts" if cache else None)


def execute(spec: Spec, session: Session) -> dict:
    """Run a spec, resume it, or return its summary at once. Trains missing teachers first."""
    check_device(spec.device, "backbone", NO_GPU)
    descriptor = describe(spec.backbone)
    fingerprint = descriptor.fingerprint()
    workers = session.workers
    run = Run(session.root, spec, fingerprint, writes=workers.main)
    if (summary := workers.agreed(run.summary)) is not None:
        teachers = locate(spec, descriptor, session.root, fingerprint)
        for start in run.starts()[-1:]:
            refuse_changed(run, start["teachers"], origins(spec, teachers))
        check_scored(run)
        session.say(f"already finished: {run.folder}")
        return summary
    run.check_place()
    if spec.lora.start:
        read_start(spec.lora, descriptor.own().get("lora", {}).get("targets"))
    for teacher_run in workers.agreed(to_train(spec, session.root, fingerprint)):
        session.say(f"training the teacher for {teacher_run.spec.tasks[0]}")
        execute(teacher_run.spec, session)
    teachers = locate(spec, descriptor, session.root, fingerprint)
    training_nfe(teachers)  # what the summary says of them is found now, or never
    if spec.device == "cpu" and torch.cuda.is_available():
        session.say("note: device is cpu although there is a GPU; --set device=cuda uses it")
    with run.lock():
        run.open()
        computed = {"compute": spec.compute.model_dump(), "scorers": spec.scorers, "processes": workers.count}
        entry = record(spec.device) | computed | {"teachers": origins(spec, teachers)}
        for earlier in run.starts():
            refuse_changed(run, earlier["teachers"], entry["teachers"])
        device = workers.device(spec.device)
        with memory("loading", spec):
            backbone = load_backbone(spec.backbone, device, spec.compute, session.root / "cache")
            lab = equip(spec, descriptor, backbone, teachers)
        lab.workers = workers
        method_class = find("method", spec.method)
        method = method_class(method_class.Options.model_validate(spec.params))
        loop = Loop(run, lab, method, descriptor.shift)
        with memory("loading", spec):
            try_scorers(lab, spec.evaluation.split)
        scorers = {name: task.scorer_name for name, task in lab.tasks.items()}
        for earlier in run.starts():
            refuse_other_scorers(run.folder, earlier.get("scorer_names"), scorers)
        run.append("provenance.jsonl", entry | {"scorer_names": scorers})
        session.say(f"run folder: {run.folder}")
        if early := spec.too_short(spec.budget.updates) if spec.budget.updates else "":
            session.say(f"note: {early}")
        label = f"{spec.method} on {', '.join(spec.tasks)}, seed {spec.seed}"
        with stopping() as loop.stop_requested:
            loop.train(lambda progress: session.listen(label, progress))
        if (late := spec.too_short(loop.step)) and not early:
            session.say(f"note: {late}")
        if workers.main:
            backbone.adapters.save(EMA, run.folder / "adapter", base=model_name(backbone.source))
        summary = workers.agreed(_summarise(loop, teachers, session, descriptor.base_guidance or {}))
        run.finish(summary)
    workers.agreed(None)  # nobody looks for the summary before it is there
    return summary


def equip(spec: Spec, descriptor: Descriptor, backbone: FlowBackbone, teachers: dict[str, Teacher]) -> Lab:
    """The laboratory that a spec describes, with its teachers mounted on the backbone."""
    return Lab(
        backbone=backbone,
        tasks=load_tasks(spec.tasks, descriptor.world, spec.scorers, str(backbone.device)),
        teachers=mount(teachers, backbone),
        teacher_guidance=spec.teacher_guidance,
        sampler=spec.sampler.build(descriptor.shift),
        guidance=spec.sampler.guidance,
        seed=spec.seed,
    )


def origins(spec: Spec, teachers: dict[str, Teacher]) -> dict[str, str]:
    """Hashes of the adapters that a run is made from: a task's teacher, and where the student starts."""
    start = {STUDENT: adapter_hash(adapter_folder(spec.lora.start))} if spec.lora.start else {}
    return {task: teacher.hash for task, teacher in teachers.items()} | start


def try_scorers(lab: Lab, split: str) -> None:
    """Score one grey picture a task, so that what is missing is found out before training and not at the first
    evaluation. Raises what the scorers raise, BenchError for one that does not give the task's headline."""
    for task in lab.tasks.values():
        prompt = task.prompts(split)[0]
        _ = task.scorer_name
        latent = torch.zeros(1, *lab.backbone.latent_shape, device=lab.backbone.device)
        scores = task.score(lab.backbone.decode(latent), [prompt])
        if task.headline not in {"reward", *scores.metrics}:
            given = ", ".join(scores.metrics) or "rewards alone"
            raise BenchError(f"the scorer of {task.name!r} gives {given}, not its headline {task.headline!r}")


def refuse_changed(run: Run, before: dict[str, str], now: dict[str, str]) -> None:
    """Raise UsageError if the hash of a teacher, or of the student's start, is not what the run was begun with."""
    changed = [task for task in now if before.get(task) != now[task]]
    if changed:
        raise UsageError(
            f"{run.folder} was begun with another adapter for {', '.join(changed)}; "
            "move it away or use another --results"
        )


def _summarise(loop: Loop, teachers: dict[str, Teacher], session: Session, base_guidance: dict[str, float]) -> dict:
    """Base at its best guidance, every teacher and the student on every task, with cost."""
    run, spec = loop.run, loop.spec
    costs = {task: cost for task, cost in training_nfe(teachers).items() if not math.isnan(cost)}
    last = [row for row in loop.workers.agreed(run.rows("evaluations.jsonl")) if row["step"] == loop.step]
    models: dict[str, dict[str, dict]] = {"student": {row["task"]: _strip(row) for row in last}}
    references = Reference(loop, session.root / "cache", session.say)
    models["base"] = {
        t: references.of("base", None, t, "base", base_guidance.get(t, spec.evaluation.scale)) for t in spec.tasks
    }
    for name, teacher in teachers.items():
        scale, model = spec.teacher_guidance[name], f"teacher {name}"
        models[model] = {t: references.of(model, teacher.adapter, t, teacher.hash, scale) for t in spec.tasks}
    if spec.evaluation.pictures:
        references.pictures["student"] = {task: f"{run.folder.name}/{PICTURES}/{task}" for task in spec.tasks}
    return {
        "method": spec.method,
        "seed": spec.seed,
        "folder": run.folder.name,
        "split": spec.evaluation.split,
        "updates": loop.step,
        "cost": loop.lab.backbone.meter.whole(loop.workers),
        "scorers": {task: loop.lab.tasks[task].scorer_name for task in spec.tasks},
        "teachers": {
            task: {"source": spec.teachers[task], "hash": teacher.hash, "evaluations": costs.get(task)}
            for task, teacher in teachers.items()
        },
        "models": models,
    } | ({"pictures": references.pictures} if references.pictures else {})


def _strip(row: dict) -> dict:
    return {key: row[key] for key in ("task", "headline", "strata", "rows", "prompts") if key in row}


class Reference:
    """Evaluations of models that do not change (base, teachers), kept on disk between runs; their pictures too, where
    the run keeps its own."""

    def __init__(self, loop: Loop, folder: Path, say: Say):
        self.loop, self.folder, self.say = loop, folder, say
        self.pictures: dict[str, dict[str, str]] = {}
        """Model -> task -> where its pictures are, from the results folder."""

    def of(self, model: str, adapter: str | None, task: str, weights: str, guidance: float) -> dict:
        """Evaluation record of an adapter whose weights have this hash, from the cache or made now."""
        spec, workers = self.loop.spec, self.loop.workers
        settings, compute = spec.evaluation, spec.compute
        key = text_hash([
            self.loop.run.backbone_hash, weights, task, self.loop.lab.tasks[task].scorer_name, guidance, settings.steps,
            settings.split, *([] if compute == PLAIN else [compute.record()]),
            *([] if (settings.shift, settings.table) == (None, None) else [settings.shift, settings.table]),
        ])  # fmt: skip
        path, kept = self.folder / f"evaluation-{key}.json", self.folder / f"{PICTURES}-{key}"
        if settings.pictures:
            self.pictures.setdefault(model, {})[task] = f"{self.folder.name}/{kept.name}"
        known = None
        if workers.main and (os.path.exists(kept) or not settings.pictures):
            known = self._kept(path, task)
        if known := workers.agreed(known):
            return known
        # Under a name of the run's own until it is whole: others may be at the same model.
        half = kept.with_name(f".{kept.name}.{self.loop.run.folder.name}") if settings.pictures else None
        with self.loop.lab.backbone.meter.purpose("references"):
            result: Evaluation = self.loop.evaluate(adapter, task, guidance, half)
        if workers.main:
            try:
                self._keep(path, result.record(), half, kept)
            except OSError as error:  # another run makes it again; this one has what it needs
                self.say(f"the evaluation of {model} on {task} is not kept: {explained(error)}")
                if half and not os.path.exists(kept):
                    shutil.rmtree(half, ignore_errors=True)
                    del self.pictures[model][task]
        return result.record()

    def _keep(self, path: Path, record: dict, half: Path | None, kept: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if half and kept.exists():
            shutil.rmtree(half)
        elif half:
            half.rename(kept)
        write_atomic(path, json.dumps(record).encode())

    def _kept(self, path: Path, task: str) -> dict | None:
        """A stored evaluation; None, which has it made again, for one that is not there or damaged."""
        prompts = self.loop.lab.tasks[task].prompts(self.loop.spec.evaluation.split)
        try:
            if not is_there(path):
                return None
            record = read_record(path)
            check_evaluation(path, record, task, len(prompts))
        except (DamagedError, OSError) as error:
            self.say(f"{one_line(error)}: it is made again")
            return None
        return record
