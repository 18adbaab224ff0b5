"""Records of submitted jobs: one folder per launch under <results>/launches, never reused.

<root>/launches/<when>-<random>/
    launch.json    executor, host, and the label, run folder and id of every job
    work/          one JSON file per job: its work, which for a run is its spec
    cancelled/     one empty file per job that a user cancelled
    ended/         one file per ended job: its last state according to the executor
    told/          one JSON file per ended job: its outcome and error according to the job itself
    jobs/          submitit's scripts, pickles and logs

Another user may have written a launch. Its values are checked before they are used in a path or passed to a process,
and only submitit's job reads its pickles.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Any

from bench.errors import DamagedError, one_line
from bench.hashing import text_hash
from bench.system.files import described, is_there, json_bytes, naming, read_record, read_text, write_atomic
from bench.system.places import locked
from bench.system.processes import identity

RUN = re.compile(r"\w[\w.+ -]*")
"""A run folder's name, which must not be a path."""
IDS = {"local": re.compile(r"[1-9][0-9]{0,9}"), "slurm": re.compile(r"[1-9][0-9]{0,11}(_[0-9]{1,9})?")}
"""Executor -> pattern of its job ids: a process id, or a Slurm job or array task."""
FIRST_PROCESS = "1"
"""Process id of init, which is never a job: cancelling a forged record must not signal it."""
STATE = re.compile(r"[A-Z_]{1,40}")
RECORDED = ("label", "run", "needs", "id", "digest")
"""Fields of a job in launch.json; its work is in a separate file."""


@dataclass(frozen=True)
class Job:
    """One piece of work for an executor."""

    label: str
    work: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The work as plain data, which for a run is its spec. Empty in a job that was read from a launch's record."""
    run: str = ""
    """Name of the run folder that the job makes; empty for commands that make none."""
    needs: tuple[str, ...] = ()
    """Labels of jobs that must be done before this one starts."""
    id: str = ""
    """The executor's id of the job; empty until the job is submitted."""
    digest: str = ""
    """Hash of `work`."""

    def __post_init__(self) -> None:
        # The class is frozen, so the field is set through object.
        if self.work:
            object.__setattr__(self, "digest", text_hash(self.work))


@dataclass
class Launch:
    """The jobs that one command submitted together, and their record on disk."""

    folder: Path
    executor: str
    """Name of the executor: local or slurm."""
    host: str
    """Name of the machine that the jobs were submitted from."""
    owner: str
    """The process that submits the jobs (`bench.system.processes.identity`)."""
    jobs: list[Job] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the launch's folder, which identifies the launch within its results folder."""
        return self.folder.name

    @property
    def job_folder(self) -> Path:
        """The folder of submitit's files."""
        return self.folder / "jobs"

    def log(self, job: Job, kind: str = "err") -> Path:
        """Return the path of the stderr ("err") or stdout ("out") of a job's first process, as submitit names it."""
        return self.job_folder / f"{job.id}_0_log.{kind}"

    def submitted(self, ids: dict[str, str]) -> list[Job]:
        """Record the ids of submitted jobs, given by label, and return these jobs."""
        self.jobs = [replace(job, id=ids.get(job.label, job.id)) for job in self.jobs]
        self.save()
        return [job for job in self.jobs if job.label in ids]

    def mark_cancelled(self, job: Job) -> None:
        """Record that a user cancelled a job, which may be running or not yet submitted."""
        path = self._cancelled(job)
        path.parent.mkdir(exist_ok=True)
        with naming(path):
            path.touch()

    def take_back_cancelled(self, job: Job) -> None:
        """Remove the record that a user cancelled a job, because the job could not be asked to stop."""
        self._cancelled(job).unlink(missing_ok=True)

    def cancelled(self, job: Job) -> float:
        """Return when a user cancelled this job, in seconds since the epoch; 0 if nobody did."""
        path = self._cancelled(job)
        return path.stat().st_mtime if path.exists() else 0.0

    def _cancelled(self, job: Job) -> Path:
        return cancelled_file(self.folder, job.label)

    def told(self, job: Job) -> dict:
        """Return what an ended job reported: its "outcome" (done, failed, stopped) and "error"; empty before that.

        Raises DamagedError for a report without these.
        """
        path = told_file(self.folder, job.label)
        if not path.exists():
            return {}
        report = read_record(path)
        if not all(isinstance(report.get(key), str) for key in ("outcome", "error")):
            raise DamagedError(f"{path} does not record how the job ended")
        return report

    def remember(self, job: Job, state: str) -> None:
        """Record the executor's last state of an ended job, which Slurm forgets after some minutes."""
        path = self.folder / "ended" / text_hash(job.label)
        if not path.exists():
            # Another user may read the launch without permission to write.
            with suppress(OSError):
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, state.encode())

    def remembered(self, job: Job) -> str:
        """Return the recorded state in which a job ended; empty if none was recorded."""
        path = self.folder / "ended" / text_hash(job.label)
        state = read_text(path) if path.exists() else ""
        return state if STATE.fullmatch(state) else ""

    def beat(self) -> None:
        """Show other machines that the submitting command is alive, by the modification time of launch.json."""
        os.utime(self.folder / "launch.json")

    @property
    def beaten(self) -> float:
        """When the submitting command was last known to be alive, in seconds since the epoch."""
        return (self.folder / "launch.json").stat().st_mtime

    def save(self) -> None:
        """Write launch.json."""
        source = {"executor": self.executor, "host": self.host, "owner": self.owner}
        jobs = [{name: getattr(job, name) for name in RECORDED} for job in self.jobs]
        record = source | {"jobs": jobs}
        write_atomic(self.folder / "launch.json", json_bytes(record))


def cancelled_file(launch: Path, label: str) -> Path:
    """Return the path of the file that exists once a user has cancelled a job."""
    return launch / "cancelled" / text_hash(label)


def told_file(launch: Path, label: str) -> Path:
    """Return the path of a job's own report of how it ended."""
    return launch / "told" / f"{text_hash(label)}.json"


def work_file(launch: Path, label: str) -> Path:
    """Return the path of a job's work."""
    return launch / "work" / f"{text_hash(label)}.json"


def new_launch(root: Path, executor: str, jobs: list[Job]) -> Launch:
    """Make a launch with a new folder.

    Folders are not reused because an executor's job ids may repeat, and old files would then be taken for new ones.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = root / "launches" / f"{stamp}-{secrets.token_hex(3)}"
    (folder / "jobs").mkdir(parents=True)
    (folder / "work").mkdir()
    for job in jobs:
        write_atomic(work_file(folder, job.label), json_bytes(job.work))
    launch = Launch(folder, executor, gethostname(), identity(), list(jobs))
    launch.save()
    return launch


def launches(root: Path) -> list[Launch]:
    """Return the readable launches of a results folder, oldest first."""
    return read_launches(root)[0]


def read_launches(root: Path) -> tuple[list[Launch], dict[str, str]]:
    """Return the launches of a results folder, oldest first, and name -> problem of those that are damaged.

    An empty name means the launches folder itself.
    """
    found: list[Launch] = []
    damaged: dict[str, str] = {}
    home = root / "launches"
    try:
        folders = sorted(home.iterdir()) if is_there(home) else []
    except OSError as error:
        return found, {"": one_line(error)}
    for folder in folders:
        path = folder / "launch.json"
        try:
            # A broken link counts as there, and reading it reports the damage.
            if is_there(path):
                found.append(_launch(path))
        except (DamagedError, OSError) as error:
            damaged[folder.name] = one_line(error)
    return found, damaged


def _launch(path: Path) -> Launch:
    record = read_record(path)
    with described(path):
        executor, host, owner = (_text(record[key]) for key in ("executor", "host", "owner"))
        if executor not in IDS:
            raise ValueError(f"unknown executor {executor!r}")
        jobs = [_job(job, executor) for job in record["jobs"]]
        return Launch(path.parent, executor, host, owner, jobs)


def _job(record: dict, executor: str) -> Job:
    """Read a job of an executor. Raises KeyError, TypeError or ValueError for an invalid record."""
    label, run, number = (_text(record[key]) for key in ("label", "run", "id"))
    needs = tuple(_text(part) for part in record["needs"])
    if run and not RUN.fullmatch(run):
        raise ValueError(f"{run!r} is not a valid name of a run folder")
    reserved = executor == "local" and number == FIRST_PROCESS
    if number and (reserved or not IDS[executor].fullmatch(number)):
        raise ValueError(f"{number!r} is not a valid job id")
    # Older records have no digest.
    digest = _text(record.get("digest", ""))
    return Job(label, {}, run, needs, number, digest)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the lock of a results folder's launches, so that two commands cannot both submit the same run."""
    with locked(root / "launches" / "lock"):
        yield
