"""Records of what was handed to an executor: one folder a launch under <results>/launches, never used twice.

<root>/launches/<when>-<random>/
    launch.json    executor, host, and every job: label, run folder, id
    work/          a JSON file a job: what it is to do; of a run its spec
    cancelled/     a file a job that a user stopped
    ended/         a file a job: how the executor said that it ended
    told/          a JSON file a job: what it says itself of how it ended
    jobs/          submitit's scripts, pickles and logs

A launch may have been written by somebody else: what it says is checked before it becomes a path or goes to a process,
and its pickles are for submitit's job alone.
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
"""A run folder's name: no path."""
IDS = {"local": re.compile(r"[1-9][0-9]{0,9}"), "slurm": re.compile(r"[1-9][0-9]{0,11}(_[0-9]{1,9})?")}
"""An executor -> what its job ids look like: a process; a job, or a task of an array."""
FIRST_PROCESS = "1"
STATE = re.compile(r"[A-Z_]{1,40}")
RECORDED = ("label", "run", "needs", "id", "digest")
"""What launch.json says of a job; its work has a file of its own."""


@dataclass(frozen=True)
class Job:
    """One piece of work to carry out somewhere."""

    label: str
    work: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Plain data that says what to do: of a run its spec. Empty in a job that was read from a launch's record."""
    run: str = ""
    """Name of the run folder it makes; empty for commands that make none."""
    needs: tuple[str, ...] = ()
    """Labels of jobs that must be done before."""
    id: str = ""
    """The executor's own; empty until it is submitted."""
    digest: str = ""
    """Hash of `work`."""

    def __post_init__(self) -> None:
        if self.work:
            object.__setattr__(self, "digest", text_hash(self.work))


@dataclass
class Launch:
    """Jobs handed over together."""

    folder: Path
    executor: str
    host: str
    owner: str
    """The process that submits its jobs (bench/jobs/scheduler.py's identity)."""
    jobs: list[Job] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def job_folder(self) -> Path:
        """What submitit writes goes here."""
        return self.folder / "jobs"

    def log(self, job: Job, kind: str = "err") -> Path:
        """The job's first process's stderr ("err") or stdout ("out"), as submitit names it."""
        return self.job_folder / f"{job.id}_0_log.{kind}"

    def submitted(self, ids: dict[str, str]) -> list[Job]:
        """Record the ids of jobs by label; returns these jobs."""
        self.jobs = [replace(job, id=ids.get(job.label, job.id)) for job in self.jobs]
        self.save()
        return [job for job in self.jobs if job.label in ids]

    def mark_cancelled(self, job: Job) -> None:
        """Remember that a user stopped a job, or does not want it submitted."""
        path = self._cancelled(job)
        path.parent.mkdir(exist_ok=True)
        with naming(path):
            path.touch()

    def take_back_cancelled(self, job: Job) -> None:
        """Forget that a user wanted to stop a job: it could not be asked."""
        self._cancelled(job).unlink(missing_ok=True)

    def cancelled(self, job: Job) -> float:
        """When a user stopped this job; 0 if nobody did."""
        path = self._cancelled(job)
        return path.stat().st_mtime if path.exists() else 0.0

    def _cancelled(self, job: Job) -> Path:
        return cancelled_file(self.folder, job.label)

    def told(self, job: Job) -> dict:
        """What the job said of its end: its "outcome" (done, failed, stopped) and "error"; empty if it said nothing.

        Raises DamagedError for anything else.
        """
        path = told_file(self.folder, job.label)
        if not path.exists():
            return {}
        said = read_record(path)
        if not all(isinstance(said.get(key), str) for key in ("outcome", "error")):
            raise DamagedError(f"{path} does not say how the job ended")
        return said

    def remember(self, job: Job, state: str) -> None:
        """Note how the executor says that a job ended: it forgets. Who may only look at a launch notes nothing."""
        path = self.folder / "ended" / text_hash(job.label)
        if not path.exists():
            with suppress(OSError):
                path.parent.mkdir(exist_ok=True)
                write_atomic(path, state.encode())

    def remembered(self, job: Job) -> str:
        """How a job ended, as far as anybody saw; empty if nobody did."""
        path = self.folder / "ended" / text_hash(job.label)
        said = read_text(path) if path.exists() else ""
        return said if STATE.fullmatch(said) else ""

    def beat(self) -> None:
        """Show other machines that the command that submits is alive."""
        os.utime(self.folder / "launch.json")

    @property
    def beaten(self) -> float:
        """When the command that submits was last known to be alive."""
        return (self.folder / "launch.json").stat().st_mtime

    def save(self) -> None:
        told = {"executor": self.executor, "host": self.host, "owner": self.owner}
        jobs = [{name: getattr(job, name) for name in RECORDED} for job in self.jobs]
        record = told | {"jobs": jobs}
        write_atomic(self.folder / "launch.json", json_bytes(record))


def cancelled_file(launch: Path, label: str) -> Path:
    """Is there once a user has stopped the job."""
    return launch / "cancelled" / text_hash(label)


def told_file(launch: Path, label: str) -> Path:
    """What a job says itself of how it ended."""
    return launch / "told" / f"{text_hash(label)}.json"


def work_file(launch: Path, label: str) -> Path:
    """What a job is to do."""
    return launch / "work" / f"{text_hash(label)}.json"


def new_launch(root: Path, executor: str, jobs: list[Job]) -> Launch:
    """A launch with a folder of its own: an executor's job ids may start again, and old files would speak for new."""
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
    """Every launch of a results folder that can be read, oldest first."""
    return read_launches(root)[0]


def read_launches(root: Path) -> tuple[list[Launch], dict[str, str]]:
    """The launches of a results folder, oldest first; and name -> what is wrong of those that are damaged.

    An empty name stands for the folder that they are in.
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
            if is_there(path):  # so is a link to nowhere, or to itself
                found.append(_launch(path))
        except (DamagedError, OSError) as error:
            damaged[folder.name] = one_line(error)
    return found, damaged


def _launch(path: Path) -> Launch:
    record = read_record(path)
    with described(path):
        executor, host, owner = (_text(record[key]) for key in ("executor", "host", "owner"))
        if executor not in IDS:
            raise ValueError(f"there is no executor {executor!r}")
        return Launch(path.parent, executor, host, owner, [_job(job, executor) for job in record["jobs"]])


def _job(record: dict, executor: str) -> Job:
    """Raises KeyError, TypeError or ValueError for what is no job of the executor's."""
    label, run, number = (_text(record[key]) for key in ("label", "run", "id"))
    needs = tuple(_text(part) for part in record["needs"])
    if run and not RUN.fullmatch(run):
        raise ValueError(f"{run!r} is no name of a run's folder")
    if number and (not IDS[executor].fullmatch(number) or (number == FIRST_PROCESS and executor == "local")):
        raise ValueError(f"{number!r} is no id of a job")
    return Job(label, {}, run, needs, number, _text(record.get("digest", "")))  # older records have none


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold while looking for active jobs and submitting: two commands at once must not submit the same run twice."""
    with locked(root / "launches" / "lock"):
        yield
