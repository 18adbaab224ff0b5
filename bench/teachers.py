"""Teachers: where a task's teacher adapter comes from, and the checks it must pass."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.backbones.adapters import adapter_hash
from bench.backbones.descriptor import Descriptor
from bench.backbones.flow import FlowBackbone
from bench.errors import MissingError, UsageError
from bench.hub import adapter_folder
from bench.spec import Spec, teacher_spec
from bench.store import Run


@dataclass(frozen=True)
class Teacher:
    """A resolved teacher: the task it is for, its peft folder and content hash."""

    task: str
    folder: Path
    hash: str

    @property
    def adapter(self) -> str:
        """The adapter's name on the backbone."""
        return f"teacher-{self.task}"


def to_train(spec: Spec, root: Path, backbone_hash: str) -> list[Run]:
    """Runs that must finish before this spec can start: teachers marked 'train' that are not there yet."""
    runs = [Run(root, teacher_spec(spec, t), backbone_hash) for t, source in spec.teachers.items() if source == "train"]
    return [run for run in runs if run.summary is None]


def locate(spec: Spec, descriptor: Descriptor, root: Path, backbone_hash: str) -> dict[str, Teacher]:
    """task -> Teacher for every task of the spec. Raises MissingError or UsageError naming the cure."""
    teachers = {}
    for task, source in spec.teachers.items():
        if source == "train":
            folder = Run(root, teacher_spec(spec, task), backbone_hash).folder / "adapter"
        elif source == "shipped":
            if not descriptor.teachers or not (descriptor.teachers / task).is_dir():
                raise MissingError(f"backbone {descriptor.name!r} ships no teacher for {task!r}; use --teachers train")
            folder = descriptor.teachers / task
        else:
            folder = adapter_folder(source)
        teachers[task] = Teacher(task, folder, adapter_hash(folder))
    return teachers


def training_evaluations(teachers: dict[str, Teacher]) -> dict[str, float]:
    """task -> training evaluations that its teacher cost; NaN where nothing beside the adapter says."""
    costs = {}
    for task, teacher in teachers.items():
        shipped, run = teacher.folder / "training.json", teacher.folder.parent / "summary.json"
        if shipped.is_file():
            costs[task] = float(json.loads(shipped.read_text())["evaluations"])
        elif run.is_file():
            costs[task] = float(json.loads(run.read_text())["cost"]["evaluations"]["training"])
        else:
            costs[task] = float("nan")
    return costs


def mount(teachers: dict[str, Teacher], backbone: FlowBackbone) -> dict[str, str]:
    """Load every teacher onto the backbone; task -> adapter name. Raises UsageError for one that equals the base."""
    names = {}
    for task, teacher in teachers.items():
        backbone.adapters.load(teacher.adapter, teacher.folder)
        if backbone.adapters.delta_norm(teacher.adapter) == 0:
            raise UsageError(f"the teacher for {task!r} ({teacher.folder}) equals the base: its adapter is zero")
        names[task] = teacher.adapter
    return names
