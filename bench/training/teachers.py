"""Teachers: where the teacher of each task comes from, and the checks that it must pass."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backbones.teacher_files import Teacher, find_teacher
from bench.config.descriptor import Descriptor
from bench.config.resolve import teacher_spec
from bench.config.spec import Spec
from bench.errors import DamagedError, MissingError, UsageError
from bench.lazy import torch, without_gradients
from bench.store.names import ADAPTER, MODEL
from bench.store.run import Run
from bench.system.files import read_json

if TYPE_CHECKING:
    from bench.backbones.flow import FlowBackbone


def to_train(spec: Spec, root: Path, backbone_hash: str) -> list[Run]:
    """The teacher runs that must finish before this spec can start: those set to 'train' that have no summary yet."""
    tasks = [task for task, source in spec.teachers.items() if source == "train"]
    runs = [Run(root, teacher_spec(spec, task), backbone_hash) for task in tasks]
    return [run for run in runs if run.summary is None]


def locate(spec: Spec, descriptor: Descriptor, root: Path, backbone_hash: str) -> dict[str, Teacher]:
    """task -> Teacher for every task of the spec. Raises MissingError or UsageError if one cannot be found or read."""
    teachers = {}
    for task, source in spec.teachers.items():
        if source == "train":
            source = str(Run(root, teacher_spec(spec, task), backbone_hash).weights)
        elif source == "shipped":
            if not descriptor.teachers or not (descriptor.teachers / task).is_dir():
                raise MissingError(f"backbone {descriptor.name!r} ships no teacher for {task!r}; use --teachers train")
            source = str(descriptor.teachers / task)
        teachers[task] = find_teacher(task, source)
    return teachers


def training_nfe(teachers: dict[str, Teacher]) -> dict[str, float]:
    """task -> training NFE of its teacher; NaN if no file next to the adapter records it.

    Raises DamagedError if the adapter belongs to one of our runs and that run's summary is damaged.
    """
    return {task: _cost(teacher.folder) for task, teacher in teachers.items()}


def _cost(folder: Path) -> float:
    summary = folder.parent / "summary.json"
    is_run = (folder.parent / "spec.json").is_file() and folder.name in (ADAPTER, MODEL)
    # Other tools use these file names too: a file with different contents is ignored.
    candidates = (
        (folder / "training.json", ("evaluations",)),
        (summary, ("cost", "evaluations", "training")),
    )
    for path, keys in candidates:
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
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and 0 <= value <= sys.float_info.max:
            return float(value)
    return math.nan


def mount(teachers: dict[str, Teacher], backbone: FlowBackbone) -> dict[str, str]:
    """Load every teacher onto the backbone; returns task -> adapter name.

    Raises UsageError for a teacher that equals the base model: it teaches nothing.
    """
    names = {}
    for task, teacher in teachers.items():
        if teacher.whole:
            backbone.load_model(teacher.model, teacher.folder)
            same = _predicts_as_base(teacher.model, backbone)
        else:
            backbone.adapters.load(teacher.model, teacher.folder)
            same = backbone.adapters.delta_norm(teacher.model) == 0
        if same:
            raise UsageError(f"the teacher for {task!r} ({teacher.folder}) equals the base model: it teaches nothing")
        names[task] = teacher.model
    return names


@without_gradients
def _predicts_as_base(model: str, backbone: FlowBackbone) -> bool:
    """Whether a whole model's velocity equals the base's to the last bit, for one latent and the empty prompt."""
    x, conditioning = backbone.noise(1, torch.Generator().manual_seed(0)), backbone.encode([""])
    return torch.equal(*(backbone.velocity(x, 0.5, conditioning, name) for name in (model, None)))
