"""Teachers as a set: what `bench teach` trained, as a folder for --teachers; and whether a run's are there.

<results>/teachers-<hash>-s<seed>/<task>/ holds a task's adapter, and in training.json what it cost and its guidance.
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.backbones.adapter_files import adapter_hash
from bench.config.resolve import TEACHER_METHOD, describe, resolve, teacher_spec
from bench.config.spec import Spec
from bench.errors import DamagedError, MissingError
from bench.hashing import text_hash
from bench.store.run import Run
from bench.system.files import json_bytes, read_record
from bench.weights.hub import PREFIX as HUB
from bench.weights.hub import adapter_folder

TRAINING = "training.json"


def check_teachers(specs: Iterable[Spec]) -> None:
    """Before anything is trained: are the teachers there that are not to be trained?

    Raises MissingError, naming the cure, for a task whose teacher the backbone does not ship, UsageError for a folder
    without an adapter. Those of a hub are not fetched for this.
    """
    seen = set()
    for spec in specs:
        for task, source in spec.teachers.items():
            if (spec.backbone, task, source) not in seen:
                seen.add((spec.backbone, task, source))
                _check(spec, task, source)


def _check(spec: Spec, task: str, source: str) -> None:
    if source == "train" or source.startswith(HUB):
        return
    if source != "shipped":
        adapter_hash(adapter_folder(source))
        return
    shipped = describe(spec.backbone).teachers
    has = [name for name in spec.tasks if shipped and (shipped / name).is_dir()]
    if task not in has:
        fewer = f", or only those that it has one for (--tasks {','.join(has)})" if has else ""
        raise MissingError(
            f"backbone {spec.backbone!r} ships no teacher for {task!r}: have it trained (--set teachers.{task}=train, "
            f"or bench run --teachers train), name a folder (--set teachers.{task}=FOLDER){fewer}"
        )


def taught_otherwise(specs: Iterable[Spec], root: Path) -> list[str]:
    """A line for every task whose teacher would be trained by the recipe although another one of it lies there.

    `bench teach --set` makes other teachers than `--teachers train` means; who made them may have meant these.
    """
    wanted: dict[str, list[Run]] = {}
    for spec in specs:
        fingerprint = describe(spec.backbone).fingerprint()
        for task in (task for task, source in spec.teachers.items() if source == "train"):
            run = Run(root, teacher_spec(spec, task), fingerprint)
            if not (run.folder / "summary.json").is_file():
                wanted.setdefault(task, []).append(run)
    lines = []
    finished = _finished_teachers(root, {run.backbone_hash for runs in wanted.values() for run in runs})
    for task, runs in wanted.items():
        recipes = {_line(run.folder) for run in runs}
        others = [folder for folder in finished.get(task, []) if _line(folder) not in recipes]
        if others:
            lines.append(
                f"train means the backbone's recipe, by which the teacher for {task} is trained now; trained "
                f"otherwise it is there too: --set teachers.{task}="
                + " or ".join(str(_near(folder / "adapter")) for folder in others)
            )
    return lines


def _line(run: Path) -> str:
    """A run's name without its seed."""
    return run.name.rpartition("-s")[0]


def _finished_teachers(root: Path, backbones: set[str]) -> dict[str, list[Path]]:
    """task -> finished single-task runs on these backbones."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob(f"{TEACHER_METHOD}-*/spec.json")) if backbones else ():
        try:
            record = read_record(path)
        except (DamagedError, OSError):
            continue  # it is no teacher that could be meant
        spec, adapter = record.get("spec"), path.parent / "adapter"
        tasks = spec.get("tasks") if isinstance(spec, dict) else None
        done = (path.parent / "summary.json").is_file() and adapter.is_dir()
        if done and record.get("backbone_hash") in backbones and isinstance(tasks, list) and len(tasks) == 1:
            found.setdefault(str(tasks[0]), []).append(path.parent)
    return found


def keep_teachers(specs: list[Spec], root: Path) -> list[str]:
    """Make one folder a seed of finished teachers, as --teachers takes it; returns what to tell the user.

    Runs are told apart by their settings, so that the same teachers have the same folder, and others another.
    """
    lines = []
    for seed in dict.fromkeys(spec.seed for spec in specs):
        mine = [spec for spec in specs if spec.seed == seed]
        runs = {spec.tasks[0]: Run(root, spec, describe(spec.backbone).fingerprint()) for spec in mine}
        name = f"teachers-{text_hash(sorted(run.folder.name for run in runs.values()))}-s{seed}"
        for task, run in runs.items():
            _keep(run, root / name / task)
        usual = " (the recipe's: --teachers train means them too)" if all(map(_by_recipe, mine)) else ""
        folder = _near(root / name)
        sets = " ".join(f"--set teachers.{task}={folder / task}" for task in runs)
        lines.append(f"teachers of seed {seed}{usual} for bench run: --teachers {folder}")
        lines.append(f"and for bench compare: {sets}")
    return lines


def _keep(run: Run, folder: Path) -> None:
    """Copy a finished teacher's adapter with what it cost, as a whole or not at all."""
    source = run.folder / "adapter"
    if folder.is_dir() and adapter_hash(folder) == adapter_hash(source):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    summary = read_record(run.folder / "summary.json")
    told = {
        "run": run.folder.name,
        "updates": summary["updates"],
        "evaluations": summary["cost"]["evaluations"].get("training", 0),
        "guidance": run.spec.evaluation.guidance,
        "seed": run.spec.seed,
    }
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as place:
        whole = Path(place) / folder.name
        shutil.copytree(source, whole)
        (whole / TRAINING).write_bytes(json_bytes(told))
        if folder.exists():
            folder.rename(Path(place) / "old")
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # another command was as far with the same
                raise


def _by_recipe(spec: Spec) -> bool:
    """Whether this is the teacher that --teachers train means."""
    recipe = resolve(TEACHER_METHOD, list(spec.tasks), spec.seed, spec.backbone)
    same = recipe.model_copy(update={"scorers": spec.scorers, "compute": spec.compute, "device": spec.device})
    fingerprint = describe(spec.backbone).fingerprint()
    return same.digest(fingerprint) == spec.digest(fingerprint)


def _near(path: Path) -> Path:
    """As seen from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
