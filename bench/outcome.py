"""What became of a run or a job, from the files it left; knows no torch, so that `bench status` is quick."""

import json
import re
from pathlib import Path

from bench.launches import Job, Launch
from bench.scheduler import State

FAILURE = "failure.json"
TAIL = 16_384
ERROR = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt)\w*): (.+)|(?:slurmstepd|srun): error: (.+)")
OURS = ("BenchError", "UsageError", "MissingError")


def recorded_failure(folder: Path) -> str | None:
    """The error that ended a run's last start, if one did."""
    path = folder / FAILURE
    return json.loads(path.read_text())["error"] if path.is_file() else None


def failure_of(launch: Launch, job: Job, root: Path, state: State) -> str | None:
    """Why an ended job did not do its work; None if it did."""
    if job.run and (root / job.run / "summary.json").is_file():
        return None
    if not job.run and succeeded(launch, job):
        return None
    if state.name == "CANCELLED" and job.needs and not launch.cancelled(job):
        return f"not started: {', '.join(job.needs)} did not end well"
    if state.name == "CANCELLED" or launch.cancelled(job):
        return "cancelled"
    if job.run and (error := recorded_failure(root / job.run)):
        return error
    if error := last_error(launch.log(job)):
        return error
    return f"ended without a result ({state.name.lower()}); see {launch.log(job)}"


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
