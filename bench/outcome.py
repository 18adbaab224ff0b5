"""What became of a run or a job, from the files it left; knows no torch, so that `bench status` is quick."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from bench.launches import Job, Launch
from bench.scheduler import GONE, State

FAILURE = "failure.json"
CANCELLED, NO_RESULT = "cancelled", "ended without a result"
TAIL = 16_384
ERROR = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt)\w*): (.+)|(?:slurmstepd|srun): error: (.+)")
OURS = ("BenchError", "UsageError", "MissingError")


def recorded_failure(folder: Path, since: float = 0.0) -> str | None:
    """The error that ended a run's last start, if one did, and not before the time `since`."""
    path = folder / FAILURE
    if not path.is_file() or path.stat().st_mtime < since:
        return None
    return json.loads(path.read_text())["error"]


def failure_of(launch: Launch, job: Job, root: Path, state: State) -> str | None:
    """Why an ended job did not do its work; None if it did."""
    if state.name != GONE.name:
        launch.remember(job, state.name)
    name = launch.remembered(job) or state.name
    if job.run and (root / job.run / "summary.json").is_file():
        return None
    if not job.run and succeeded(launch, job):
        return None
    cancelled = launch.cancelled(job)
    if job.run and (error := recorded_failure(root / job.run, cancelled)):
        return error
    if cancelled:
        return CANCELLED
    if job.needs and not launch.log(job).is_file():
        return not_started(job.needs)
    if name == "CANCELLED":
        return CANCELLED
    if error := last_error(launch.log(job)):
        return error
    return f"{NO_RESULT} ({name.lower()}); see {launch.log(job)}"


def not_started(needs: Iterable[str]) -> str:
    """What is said of a job whose needs failed."""
    return f"not started: {', '.join(needs)} did not end well"


def succeeded(launch: Launch, job: Job) -> bool:
    """Whether submitit recorded the job's success (in the launch's own folder)."""
    from submitit.core.utils import JobPaths, pickle_load

    path = JobPaths(launch.job_folder, job.id).result_pickle
    return path.is_file() and pickle_load(path)[0] == "success"


def last_error(log: Path) -> str | None:
    """The last exception that a log names, without its module; else Slurm's last error."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    matches = [found for line in reversed(lines) if (found := ERROR.match(line))]
    raised = next((found for found in matches if found[1]), None)
    if raised:
        return raised[2] if raised[1] in OURS else f"{raised[1]}: {raised[2]}"
    return matches[0][3] if matches else None
