"""How a job ended, according to the files that it left. Does not import torch, so that `bench status` is quick."""

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
"""Outcomes that a job reports itself."""
TAIL = 16_384
"""Bytes at the end of a log that are searched for an error."""
ERROR = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt)\w*): (.+)|(?:slurmstepd|srun): error: (.+)")
OURS = ("BenchError", "UsageError", "DamagedError", "BusyError", "MissingError", "PartialError")
"""Exceptions whose message is shown without the class name."""


def failure_of(launch: Launch, job: Job, root: Path, state: State) -> str | None:
    """Return why an ended job did not do its work; None if it did. A damaged record of the job is the reason, too."""
    try:
        error = _failure_of(launch, job, root, state)
    except (DamagedError, OSError) as damage:
        return one_line(damage)
    return legible(error) if error else None


def _failure_of(launch: Launch, job: Job, root: Path, state: State) -> str | None:
    # The order of these checks matters: a result counts however its job ended, a run's recorded error is more specific
    # than the job's, and a log may quote errors that did not end the job.
    if state.name != GONE.name:
        launch.remember(job, state.name)
    name = launch.remembered(job) or state.name
    if job.run and (root / job.run / "summary.json").is_file():
        return None
    report = launch.told(job)
    if not job.run and report.get("outcome") == DONE:
        return None
    cancelled = launch.cancelled(job)
    if job.run and (error := recorded_failure(root / job.run, cancelled)):
        return error
    if cancelled or report.get("outcome") == STOPPED:
        return CANCELLED
    if job.needs and not launch.log(job).is_file():
        return not_started(job.needs)
    if name == "CANCELLED":
        return CANCELLED
    if error := report.get("error") or last_error(launch.log(job)):
        return error
    return f"{NO_RESULT} ({name.lower()}); see {launch.log(job)}"


def not_started(needs: Iterable[str]) -> str:
    """Return the error of a job that could not start because jobs that it needs failed."""
    return f"not started, dependency failed: {', '.join(needs)}"


def last_error(log: Path) -> str | None:
    """Return the last exception in a log, without its module, or else Slurm's last error; None if there is neither."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    matches = [found for found in map(ERROR.match, reversed(lines)) if found]
    raised = next((found for found in matches if found[1]), None)
    if raised:
        return raised[2] if raised[1] in OURS else f"{raised[1]}: {raised[2]}"
    return matches[0][3] if matches else None
