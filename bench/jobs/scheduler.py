"""States of submitted jobs, from Slurm's queue and this machine's processes. Needs no accounting database of Slurm."""

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
    """A job's state according to its executor, in Slurm's terms."""

    name: str
    """Slurm's name of the state, or GONE or ELSEWHERE."""
    reason: str = ""
    """Why Slurm keeps the job pending."""
    where: str = ""
    """The nodes or the process that the job runs on."""

    @property
    def waiting(self) -> bool:
        """Whether the job has yet to start."""
        return self.name in WAITING

    @property
    def active(self) -> bool:
        """Whether the job has yet to end."""
        return self.waiting or self.name in WORKING


GONE = State("GONE")
"""State of a job that its executor no longer knows, which means that it has ended."""
ELSEWHERE = "ELSEWHERE"
"""Name of the state of a local job on another machine, whose processes cannot be seen from this one."""


def states(found: list[Launch]) -> dict[tuple[str, str], State] | None:
    """Return (launch name, job label) -> State of every submitted job; None if Slurm does not answer.

    Slurm's queue shows ended jobs for its MinJobAge, and a job that is missing from it has ended, too. Jobs are looked
    up by name (their launch's) and id, because an id alone may belong to a different job after a reset of Slurm's
    controller or on a different cluster.
    """
    submitted = [(launch, job) for launch in found for job in launch.jobs if job.id]
    queue: dict[tuple[str, str], State] = {}
    if any(launch.executor == "slurm" for launch, _ in submitted):
        answer = _squeue()
        if answer is None:
            return None
        queue = answer
    result: dict[tuple[str, str], State] = {}
    for launch, job in submitted:
        state = queue.get((launch.name, job.id), GONE) if launch.executor == "slurm" else _local(launch, job)
        result[launch.name, job.label] = state
    return result


def _squeue() -> dict[tuple[str, str], State] | None:
    """Return (job name, job id) -> State of all jobs in Slurm's queue; None if squeue fails."""
    fields = SEPARATOR.join(f"%{letter}" for letter in "jiTrN")
    command = ["squeue", "--noheader", "--all", "--array", "--states=all", f"--format={fields}"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    queue: dict[tuple[str, str], State] = {}
    for line in done.stdout.split("\n"):
        row = [part.strip() for part in line.split(SEPARATOR)]
        if len(row) >= 5:
            name, number, state, reason, where = row[:5]
            queue[name, number] = State(state, reason, where)
    return queue


def _local(launch: Launch, job: Job) -> State:
    """Return the state of a local job: RUNNING while its controller process is alive."""
    if launch.host != gethostname():
        return State(ELSEWHERE, where=launch.host)
    # The system reuses process ids, but only the controller has the launch's name on its command line. The path before
    # the name is not compared, because it may go through a link.
    alive = os.fsencode(f"/{launch.name}/{launch.job_folder.name}") in command_line(int(job.id))
    return State("RUNNING", where=f"process {job.id}") if alive else GONE
