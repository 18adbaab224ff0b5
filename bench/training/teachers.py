"""Teachers: where a task's teacher adapter comes from, and the checks it must pass."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.backbones.adapter_files import adapter_hash
from bench.backbones.flow import FlowBackbone
from bench.config.descriptor import Descriptor
from bench.config.resolve import teacher_spec
from bench.config.spec import Spec
from bench.errors import DamagedError, MissingError, UsageError
from bench.store.run import Run
from bench.system.files import read_json
from bench.weights.hub import adapter_folder


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


def training_nfe(teachers: dict[str, Teacher]) -> dict[str, float]:
    """task -> training NFE that its teacher cost; NaN where nothing beside the adapter says.

    Raises DamagedError if a run of ours, whose adapter it is, has a damaged summary.
    """
    return {task: _cost(teacher.folder) for task, teacher in teachers.items()}


def _cost(folder: Path) -> float:
    """Files of these names may be another tool's; they then say nothing of the cost."""
    summary = folder.parent / "summary.json"
    is_run = (folder.parent / "spec.json").is_file() and folder.name == "adapter"
    for path, keys in ((folder / "training.json", ("evaluations",)), (summary, ("cost", "evaluations", "training"))):
        if not path.is_file():
            continue
        try:
            value = read_json(path)
            for key in keys:
                value = value[key] if isinstance(value, dict) and key in value else None
        except DamagedError:
            if is_run and path == summary:
                raise
            continue
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max:
            return float(value)
    return math.nan


def mount(teachers: dict[str, Teacher], backbone: FlowBackbone) -> dict[str, str]:
    """Load every teacher onto the backbone; task -> adapter name. Raises UsageError for one that equals the base."""
    names = {}
    for task, teacher in teachers.items():
        backbone.adapters.load(teacher.adapter, teacher.folder)
        if backbone.adapters.delta_norm(teacher.adapter) == 0:
            raise UsageError(f"the teacher for {task!r} ({teacher.folder}) equals the base: its adapter is zero")
        names[task] = teacher.adapter
    return names
