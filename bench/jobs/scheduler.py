"""What became of jobs: asks Slurm's queue, and the processes of this machine. Works where Slurm's accounting is off."""

import os
import subprocess
from dataclasses import dataclass
from socket import gethostname

from bench.jobs.launches import Job, Launch
from bench.system.processes import command_line

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "SPECIAL_EXIT"}
WORKING = {"RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}
SEPARATOR = "|"


@dataclass(frozen=True)
class State:
    """An executor's word on a job, in Slurm's terms; GONE: it is not known any more, so it has ended."""

    name: str
    reason: str = ""
    where: str = ""

    @property
    def waiting(self) -> bool:
        return self.name in WAITING

    @property
    def active(self) -> bool:
        return self.waiting or self.name in WORKING


GONE = State("GONE")
ELSEWHERE = "ELSEWHERE"
"""State of a local job of another machine, whose processes cannot be seen from here."""


def states(found: list[Launch]) -> dict[tuple[str, str], State] | None:
    """(launch's name, job's label) -> State of every submitted job; None if Slurm does not answer just now.

    Slurm's queue shows ended jobs for MinJobAge; what it has forgotten has ended too. A job's name is its launch's:
    its number alone may by now be another's, after a reset of Slurm's controller or on another cluster.
    """
    queue: dict[tuple[str, str], State] = {}
    if any(launch.executor == "slurm" and any(job.id for job in launch.jobs) for launch in found):
        answer = _squeue()
        if answer is None:
            return None
        queue = answer
    return {
        (launch.name, job.label): queue.get((launch.name, job.id), GONE)
        if launch.executor == "slurm"
        else _local(launch, job)
        for launch in found
        for job in launch.jobs
        if job.id
    }


def _squeue() -> dict[tuple[str, str], State] | None:
    """(job's name, id) -> State."""
    fields = SEPARATOR.join(f"%{letter}" for letter in "jiTrN")
    command = ["squeue", "--noheader", "--all", "--array", "--states=all", f"--format={fields}"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    rows = [[part.strip() for part in line.split(SEPARATOR)] for line in done.stdout.split("\n")]
    return {(row[0], row[1]): State(*row[2:5]) for row in rows if len(row) >= 5}


def _local(launch: Launch, job: Job) -> State:
    """A local job is its controller's process; its command line holds the launch's own name, so that another process
    that got the same number since is not taken for it. (The folder before may have been named by way of a link.)"""
    if launch.host != gethostname():
        return State(ELSEWHERE, where=launch.host)
    alive = os.fsencode(f"/{launch.name}/{launch.job_folder.name}") in command_line(int(job.id))
    return State("RUNNING", where=f"process {job.id}") if alive else GONE
