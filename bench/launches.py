"""Records of what was handed to an executor: one folder a launch under <results>/launches, never used twice.

<root>/launches/<when>-<random>/
    launch.json    executor, host, and every job: label, command, run folder, id
    cancelled/     a file a job that a user stopped
    ended/         a file a job: how the executor said that it ended
    jobs/          submitit's scripts, pickles and logs
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname

from bench.files import write_atomic
from bench.hashing import text_hash
from bench.processes import identity


@dataclass(frozen=True)
class Job:
    """One `bench` command to carry out somewhere."""

    label: str
    arguments: tuple[str, ...]
    """Of `bench`."""
    run: str = ""
    """Name of the run folder it makes; empty for commands that make none."""
    needs: tuple[str, ...] = ()
    """Labels of jobs that must be done before."""
    id: str = ""
    """The executor's own; empty until it is submitted."""


@dataclass
class Launch:
    """Jobs handed over together."""

    folder: Path
    executor: str
    host: str
    owner: str
    """The process that submits its jobs (bench/scheduler.py's identity)."""
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
        path.touch()

    def cancelled(self, job: Job) -> float:
        """When a user stopped this job; 0 if nobody did."""
        path = self._cancelled(job)
        return path.stat().st_mtime if path.exists() else 0.0

    def _cancelled(self, job: Job) -> Path:
        return self.folder / "cancelled" / text_hash(job.label)

    def remember(self, job: Job, state: str) -> None:
        """Note how the executor says that a job ended: it forgets."""
        path = self.folder / "ended" / text_hash(job.label)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, state.encode())

    def remembered(self, job: Job) -> str:
        """How a job ended, as far as anybody saw; empty if nobody did."""
        path = self.folder / "ended" / text_hash(job.label)
        return path.read_text() if path.exists() else ""

    def beat(self) -> None:
        """Show other machines that the command that submits is alive."""
        os.utime(self.folder / "launch.json")

    @property
    def beaten(self) -> float:
        """When the command that submits was last known to be alive."""
        return (self.folder / "launch.json").stat().st_mtime

    def save(self) -> None:
        told = {"executor": self.executor, "host": self.host, "owner": self.owner}
        record = told | {"jobs": [asdict(job) for job in self.jobs]}
        write_atomic(self.folder / "launch.json", (json.dumps(record, indent=1) + "\n").encode())


def new_launch(root: Path, executor: str, jobs: list[Job]) -> Launch:
    """A launch with a folder of its own: an executor's job ids may start again, and old files would speak for new."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder = root / "launches" / f"{stamp}-{secrets.token_hex(3)}"
    (folder / "jobs").mkdir(parents=True)
    launch = Launch(folder, executor, gethostname(), identity(), list(jobs))
    launch.save()
    return launch


def launches(root: Path) -> list[Launch]:
    """Every launch of a results folder, oldest first."""
    found = []
    for path in sorted((root / "launches").glob("*/launch.json")):
        record = json.loads(path.read_text())
        jobs = [Job(**job | {key: tuple(job[key]) for key in ("arguments", "needs")}) for job in record["jobs"]]
        found.append(Launch(path.parent, record["executor"], record["host"], record["owner"], jobs))
    return found


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold while looking for active jobs and submitting: two commands at once must not submit the same run twice."""
    (root / "launches").mkdir(parents=True, exist_ok=True)
    with (root / "launches" / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
