"""What became of a run or a job, from the files it left; knows no torch, so that `bench status` is quick."""

import re
from collections.abc import Iterable
from pathlib import Path

from bench.errors import DamagedError, one_line
from bench.jobs.launches import Job, Launch
from bench.jobs.scheduler import GONE, State
from bench.store.names import recorded_failure
from bench.terminal import legible

CANCELLED, NO_RESULT = "cancelled", "ended without a result"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
"""What a job says of its end."""
TAIL = 16_384
ERROR = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt)\w*): (.+)|(?:slurmstepd|srun): error: (.+)")
OURS = ("BenchError", "UsageError", "DamagedError", "BusyError", "MissingError", "PartialError")


def failure_of(launch: Launch, job: Job, root: Path, state: State) -> str | None:
    """Why an ended job did not do its work; None if it did. A damaged record of it is named as the reason."""
    try:
        error = _failure_of(launch, job, root, state)
    except (DamagedError, OSError) as damage:
        return one_line(damage)
    return legible(error) if error else None


def _failure_of(launch: Launch, job: Job, root: Path, state: State) -> str | None:
    if state.name != GONE.name:
        launch.remember(job, state.name)
    name = launch.remembered(job) or state.name
    if job.run and (root / job.run / "summary.json").is_file():
        return None
    told = launch.told(job)
    if not job.run and told.get("outcome") == DONE:
        return None
    cancelled = launch.cancelled(job)
    if job.run and (error := recorded_failure(root / job.run, cancelled)):
        return error
    if cancelled or told.get("outcome") == STOPPED:
        return CANCELLED
    if job.needs and not launch.log(job).is_file():
        return not_started(job.needs)
    if name == "CANCELLED":
        return CANCELLED
    if error := told.get("error") or last_error(launch.log(job)):
        return error
    return f"{NO_RESULT} ({name.lower()}); see {launch.log(job)}"


def not_started(needs: Iterable[str]) -> str:
    """What is said of a job whose needs failed."""
    return f"not started: {', '.join(needs)} did not end well"


def last_error(log: Path) -> str | None:
    """The last exception that a log names, without its module; else Slurm's last error."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    matches = [found for line in reversed(lines) if (found := ERROR.match(line))]
    raised = next((found for found in matches if found[1]), None)
    if raised:
        return raised[2] if raised[1] in OURS else f"{raised[1]}: {raised[2]}"
    return matches[0][3] if matches else None
