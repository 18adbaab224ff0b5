"""Sets of teachers: what `bench teach` trained, as a folder for --teachers, and checks that a run's teachers exist.

<results>/teachers-<hash>-s<seed>/<task>/ holds the adapter, or the network, of one task; its training.json records cost
and guidance.
"""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.backbones.teacher_files import Teacher, find_teacher
from bench.config.resolve import TEACHER_METHOD, describe, resolve, teacher_spec
from bench.config.spec import Spec
from bench.errors import DamagedError, MissingError
from bench.hashing import text_hash
from bench.store.names import weights_folder
from bench.store.run import Run
from bench.system.files import json_bytes, read_record
from bench.weights.hub import PREFIX as HUB

TRAINING = "training.json"
"""Records next to an adapter what its training cost."""


def check_teachers(specs: Iterable[Spec]) -> None:
    """Check, before anything is trained, that all teachers that are not to be trained exist and match the backbone.

    Raises MissingError for a task whose teacher the backbone does not ship, naming the alternatives, and UsageError for
    a folder without an adapter or with one for another network. Nothing is downloaded from a hub for this check.
    """
    seen = set()
    for spec in specs:
        for task, source in spec.teachers.items():
            if (spec.backbone, task, source) not in seen:
                seen.add((spec.backbone, task, source))
                _check(spec, task, source)


def _check(spec: Spec, task: str, source: str) -> None:
    """Check the teacher of one task."""
    if source == "train" or source.startswith(HUB):
        return
    if source != "shipped":
        require_fit(spec, find_teacher(task, source))
        return
    shipped = describe(spec.backbone).teachers
    has = [name for name in spec.tasks if shipped and (shipped / name).is_dir()]
    if task not in has:
        fewer = f", or use only the tasks that have one (--tasks {','.join(has)})" if has else ""
        raise MissingError(
            f"backbone {spec.backbone!r} ships no teacher for {task!r}: train one (--set teachers.{task}=train, "
            f"or bench run --teachers train), name a folder (--set teachers.{task}=FOLDER){fewer}"
        )


def require_fit(spec: Spec, teacher: Teacher) -> None:
    """Raise UsageError for a teacher that does not match the backbone's network, of which only shapes are needed."""
    from bench.backbones.adapters import Adapters
    from bench.backbones.whole_models import require_kind

    size = (describe(spec.backbone).size or (lambda _: None))(spec.compute)
    if size is None:  # before the model is downloaded; the run itself checks again
        return
    model = size.network.build()
    if teacher.whole:
        require_kind(type(model), teacher.folder)
    else:
        Adapters(model, size.network.targets).require_fit(teacher.folder)


def taught_otherwise(specs: Iterable[Spec], root: Path) -> list[str]:
    """A line for every task whose teacher is about to be trained although one with other settings exists.

    `bench teach --set` trains teachers that differ from what `--teachers train` means; its user may have meant them.
    """
    wanted: dict[str, list[Run]] = {}
    for spec in specs:
        fingerprint = describe(spec.backbone).fingerprint()
        to_train = [task for task, source in spec.teachers.items() if source == "train"]
        for task in to_train:
            run = Run(root, teacher_spec(spec, task), fingerprint)
            if not (run.folder / "summary.json").is_file():
                wanted.setdefault(task, []).append(run)
    lines = []
    backbones = {run.backbone_hash for runs in wanted.values() for run in runs}
    finished = _finished_teachers(root, backbones)
    for task, runs in wanted.items():
        recipes = {_line(run.folder) for run in runs}
        others = [folder for folder in finished.get(task, []) if _line(folder.parent) not in recipes]
        if others:
            folders = " or ".join(str(near(folder)) for folder in others)
            lines.append(
                f"the teacher for {task} is trained now by the backbone's recipe; to use one that was trained "
                f"with other settings: --set teachers.{task}={folders}"
            )
    return lines


def _line(run: Path) -> str:
    """A run folder's name without its seed: equal for runs that differ in the seed only."""
    return run.name.rpartition("-s")[0]


def _finished_teachers(root: Path, backbones: set[str]) -> dict[str, list[Path]]:
    """task -> folders of the students of finished single-task teacher runs on these backbones."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob(f"{TEACHER_METHOD}-*/spec.json")) if backbones else ():
        try:
            record = read_record(path)
        except (DamagedError, OSError):
            continue  # an unreadable folder is not offered as a teacher
        spec = record.get("spec")
        if not isinstance(spec, dict):
            continue
        tasks, weights = spec.get("tasks"), weights_folder(path.parent, spec.get("full_finetuning") is True)
        done = (path.parent / "summary.json").is_file() and weights.is_dir()
        if not (done and isinstance(tasks, list) and len(tasks) == 1):
            continue
        if record.get("backbone_hash") in backbones:
            found.setdefault(str(tasks[0]), []).append(weights)
    return found


@dataclass(frozen=True)
class TeacherSet:
    """The teachers of one seed, in the form --teachers takes: a folder with one subfolder per task."""

    seed: int
    folder: Path
    """Relative to the current folder if it is inside it."""
    runs: dict[str, Run]
    """Task -> run that trains its teacher."""
    by_recipe: bool
    """Whether --teachers train would train the same teachers."""


def teacher_sets(specs: list[Spec], root: Path) -> list[TeacherSet]:
    """The sets that these teachers make, one per seed, whether or not they are trained yet.

    A folder's name contains a hash of the runs, so that the same teachers always have the same folder.
    """
    sets = []
    for seed in dict.fromkeys(spec.seed for spec in specs):
        mine = [spec for spec in specs if spec.seed == seed]
        runs = {spec.tasks[0]: Run(root, spec, describe(spec.backbone).fingerprint()) for spec in mine}
        names = sorted(run.folder.name for run in runs.values())
        folder = near(root / f"teachers-{text_hash(names)}-s{seed}")
        sets.append(TeacherSet(seed, folder, runs, all(_by_recipe(spec) for spec in mine)))
    return sets


def keep_teachers(sets: list[TeacherSet]) -> None:
    """Copy the finished teachers of these sets to their folders."""
    for kept in sets:
        for task, run in kept.runs.items():
            _keep(run, kept.folder / task)


def training_record(run: Run, updates: int, nfe: int) -> dict:
    """What TRAINING says about an adapter that a run has trained with this many updates and training NFE."""
    return {
        "run": run.folder.name,
        "updates": updates,
        "evaluations": nfe,
        "guidance": run.spec.evaluation.guidance,
        "seed": run.spec.seed,
    }


def _keep(run: Run, folder: Path) -> None:
    """Copy a finished teacher and its cost to `folder`, completely or not at all."""
    task, source = run.spec.tasks[0], run.weights
    if folder.is_dir() and find_teacher(task, str(folder)).hash == find_teacher(task, str(source)).hash:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    summary = read_record(run.folder / "summary.json")
    training = training_record(run, summary["updates"], summary["cost"]["evaluations"].get("training", 0))
    # Built in a hidden folder on the same file system, so that a rename publishes all files at once.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        complete = Path(scratch) / folder.name
        shutil.copytree(source, complete)
        (complete / TRAINING).write_bytes(json_bytes(training))
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():  # if it exists, another command published the same teacher first
                raise


def _by_recipe(spec: Spec) -> bool:
    """Whether this spec is the teacher that --teachers train would train."""
    recipe = resolve(TEACHER_METHOD, list(spec.tasks), spec.seed, spec.backbone, checked=False)
    machine = {"scorers": spec.scorers, "compute": spec.compute, "device": spec.device, "trackers": spec.trackers}
    same = recipe.model_copy(update=machine | {"rewards": spec.rewards})
    fingerprint = describe(spec.backbone).fingerprint()
    return same.digest(fingerprint) == spec.digest(fingerprint)


def near(path: Path) -> Path:
    """Return the path relative to the current folder if it is inside it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
