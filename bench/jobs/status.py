"""States of runs and jobs, read from their files and the executors' queues; cancelling jobs and reading their logs.

Imports neither torch nor methods, because it must answer at once even for thousands of runs.
"""

import errno
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, DamagedError, PartialError, UsageError, one_line, unknown
from bench.jobs.launches import Job, Launch, read_launches
from bench.jobs.outcome import CANCELLED, failure_of
from bench.jobs.scheduler import ELSEWHERE, State, states
from bench.store.damage import check_resumable, check_settings, check_whole
from bench.store.names import recorded_failure
from bench.system.files import described, is_file, is_there, open_file, parse_json
from bench.system.processes import lives
from bench.terminal import legible

ORDER = ("running", "pending", "damaged", "failed", "stopped", "done")
BEGUN = ("spec.json", "provenance.jsonl")
"""Files of which a run folder has at least one."""
NAMED = re.compile(r".+-[0-9a-f]{10}-s[0-9]+")
"""Pattern of a run folder's name."""
QUIET_S = 900
"""A run on another machine that has written nothing for so many seconds is taken as stopped."""
TAIL = 65_536
"""Bytes at the end of metrics.jsonl that are read for its last line."""
LOCK = 4096
"""Bytes of a lock file that are read; it has one line."""
LOG_TAIL = 2**20
"""Bytes at the end of a job's log that are shown."""


@dataclass(frozen=True)
class StatusRow:
    """The state of one run, or of one job that makes no run."""

    name: str
    """Run folder, or "launch: label" for a job that makes no run."""
    state: str
    """One of ORDER."""
    fraction: float | None = None
    """Fraction of the budget that is spent, from 0 to 1; None before the run has started."""
    left_s: float | None = None
    """Predicted remaining time in seconds; None if unknown."""
    where: str = ""
    """The executor, node or process that has the run."""
    note: str = ""
    """The error of a failed or damaged run, the reason that a pending job waits for, or how to resume."""


def survey(root: Path) -> list[StatusRow]:
    """Return the state of every run and job of a results folder, sorted by state and name.

    Runs and launches whose files cannot be read are listed as damaged.
    """
    known, damaged = read_launches(root)
    answers = states(known)
    latest: dict[str, tuple[Launch, Job, State | None]] = {}
    for launch in known:
        for job in launch.jobs:
            if not job.id and not _will_submit(launch, job):
                continue
            state = (answers or {}).get((launch.name, job.label))
            latest[job.run or f"{launch.name}: {job.label}"] = (launch, job, state)
    runs = {folder.name for folder in _entries(root) if _begun(folder)}
    rows = [_row(root, name, latest.get(name), answers is None) for name in runs | latest.keys()]
    for name, problem in damaged.items():
        # The name is empty if the launches folder itself cannot be read.
        rows.append(StatusRow(f"launches/{name}".rstrip("/"), "damaged", note=problem))
    return sorted(rows, key=lambda row: (ORDER.index(row.state), row.name))


def _entries(root: Path) -> list[Path]:
    """Return the entries of a results folder, which may not exist yet. Raises OSError if it cannot be read."""
    try:
        return list(root.iterdir())
    except FileNotFoundError:
        return []


def _begun(folder: Path) -> bool:
    """Return whether a folder is a run's. A file that is a broken link counts as existing."""
    try:
        return any(is_there(folder / file) for file in BEGUN)
    except OSError:
        # A folder without read permission can only be judged by its name.
        return bool(NAMED.fullmatch(folder.name))


Submission = tuple[Launch, Job, State | None]
"""A run's latest job, its launch, and its state; None if Slurm does not answer or the job is not submitted."""


def _row(root: Path, name: str, handed: Submission | None, silent: bool) -> StatusRow:
    """Return the status of a run or job; `silent` means that Slurm does not answer."""
    try:
        if _begun(root / name):
            check_settings(root / name)
        row = _read_row(root, name, handed, silent)
        if row.state in ("failed", "stopped"):
            check_resumable(root / name)
        return row
    except (DamagedError, OSError) as error:
        return StatusRow(name, "damaged", note=one_line(error))


def _read_row(root: Path, name: str, handed: Submission | None, silent: bool) -> StatusRow:
    """Return the status of a run or job. The first source that knows it decides; the order below is deliberate."""
    folder = root / name
    if os.path.lexists(folder / "summary.json"):
        check_whole(folder / "summary.json")
        return StatusRow(name, "done", 1.0)
    fraction, left = _progress(folder)
    launch, job, state = handed or (None, None, None)
    if launch and job and job.id and launch.executor == "slurm" and silent:
        return StatusRow(name, "running" if fraction else "pending", fraction, left, "Slurm", "Slurm does not answer")
    place = f"{launch.executor} {job.id} {state.where}".strip() if launch and job and state else ""
    if state and state.waiting:
        return StatusRow(name, "pending", fraction, None, place, state.reason)
    if state and state.active:
        return StatusRow(name, "running", fraction, left, place)
    known = state is not None and state.name != ELSEWHERE
    if owner := _owner(folder, guess=not known):
        return StatusRow(name, "running", fraction, left, owner)
    if launch and job and state and not known:
        note = f"its state is not visible from this machine: run bench status on {state.where}"
        return StatusRow(name, "stopped", fraction, None, place, note)
    if launch and job and state:
        error = failure_of(launch, job, root, state)
        verdict = {None: "done", CANCELLED: "stopped"}.get(error, "failed")
        return StatusRow(name, verdict, fraction, None, place, error or "")
    if launch and job and not job.id:
        return StatusRow(name, "pending", fraction, None, launch.executor, "waiting for a free slot")
    if error := recorded_failure(folder):
        return StatusRow(name, "failed", fraction, None, "", error)
    return StatusRow(name, "stopped", fraction, None, "", "rerun the command to resume")


def _will_submit(launch: Launch, job: Job) -> bool:
    """Return whether the command that would submit a job is still running."""
    alive = lives(launch.owner)
    # The command runs on another machine, where it renews the launch's time stamp.
    if alive is None:
        alive = time.time() - launch.beaten < QUIET_S
    return alive and not launch.cancelled(job)


def _owner(folder: Path, guess: bool) -> str:
    """Describe the process that carries out a run; empty if there is none.

    A process on another machine cannot be seen. With `guess` it counts as alive if the run has written recently.
    """
    written = ""
    if is_file(lock := folder / "lock"):
        with open_file(lock) as file:
            written = file.read(LOCK).decode(errors="replace")
    alive = lives(written)
    if alive is None and guess:
        metrics = folder / "metrics.jsonl"
        alive = metrics.is_file() and time.time() - metrics.stat().st_mtime < QUIET_S
    return f"process {' on '.join(written.split()[:2])}" if alive else ""


def _progress(folder: Path) -> tuple[float | None, float | None]:
    """Return the fraction of the budget that is spent and the predicted remaining seconds.

    Both are None before the run has started. Raises DamagedError for an invalid log.
    """
    metrics = folder / "metrics.jsonl"
    if not os.path.lexists(metrics):
        return None, None
    with open_file(metrics) as file:
        file.seek(max(0, metrics.stat().st_size - TAIL))
        # Text after the last line break is a line that is still being written.
        lines = file.read().split(b"\n")[:-1]
    if not lines:
        return 0.0, None
    budget = check_settings(folder)["budget"]
    with described(metrics):
        row = parse_json(lines[-1].decode(), f"the last line of {metrics}")
        clocks, nfe = row["seconds"], row["evaluations"].get("training", 0)
        done = {
            "updates": row["step"],
            "nfe": nfe,
            # The name of this budget in older records.
            "evaluations": nfe,
            "seconds": clocks.get("training", 0) + clocks.get("scoring", 0),
        }
        spent = sum(seconds for name, seconds in clocks.items() if name != "idle")
        # A budget has one entry that is not null.
        shares = (done[name] / whole for name, whole in budget.items() if whole)
        fraction = min(1.0, next(shares, 0.0))
        left = spent * (1 - fraction) / fraction if fraction else None
        counts = (*done.values(), spent, left or 0)
        if not all(0 <= count < math.inf for count in counts):
            raise ValueError("its last line has a count that is negative or not finite")
        return fraction, left


def cancel(root: Path, names: list[str]) -> list[str]:
    """Cancel jobs and return their names.

    `names` are run folders or prefixes of them, launches, or 'all'. Checkpoints are kept, and rerunning the command
    resumes the runs. Raises UsageError for a name that matches no job. If some jobs cannot be cancelled, for example
    those of another user, the others are cancelled and PartialError names the rest.
    """
    known = _known(root, names)
    answers = states(known)
    if answers is None:
        raise BenchError("Slurm does not answer (squeue failed): nothing was cancelled")
    stopped: list[str] = []
    refused: dict[str, str] = {}
    for name in names:
        chosen = _matching(name, known)
        if not chosen and name != "all":
            raise unknown("run or launch", name, _names(known))
        for launch, job in chosen:
            state = answers.get((launch.name, job.label))
            if state and state.active:
                if cause := _asked_to_stop(launch, job):
                    refused[job.run or job.label] = cause
                else:
                    stopped.append(job.run or job.label)
            elif not job.id and _will_submit(launch, job):
                launch.mark_cancelled(job)
                stopped.append(job.run or job.label)
    # Several launches may have a job of the same run.
    stopped = list(dict.fromkeys(stopped))
    if refused:
        others = f"; cancelled: {', '.join(stopped)}" if stopped else ""
        causes = ", ".join(f"{name} ({cause})" for name, cause in refused.items())
        raise PartialError(f"not cancelled: {causes}{others}")
    return stopped


def _asked_to_stop(launch: Launch, job: Job) -> str:
    """Mark a job as cancelled and ask it to stop. Returns the error if that fails, after removing the new mark."""
    before = launch.cancelled(job)
    try:
        launch.mark_cancelled(job)
        _stop(launch, job)
    except OSError as error:
        if not before:
            with suppress(OSError):
                launch.take_back_cancelled(job)
        return f"{launch.executor} {job.id}: {one_line(error)}"
    return ""


def _known(root: Path, names: list[str]) -> list[Launch]:
    """Return the readable launches, with a note on stderr for each damaged one.

    Raises UsageError for an empty name, and DamagedError if `names` contains a damaged launch.
    """
    if not all(name.strip() for name in names):
        raise UsageError("an empty name would match every run: give a run folder, a prefix of one, or a launch")
    known, damaged = read_launches(root)
    for launch, problem in damaged.items():
        if launch in names:
            raise DamagedError(problem)
        print(f"note: {legible(problem)}; its jobs are skipped", file=sys.stderr)
    return known


def _matching(name: str, known: list[Launch]) -> list[tuple[Launch, Job]]:
    """Return the jobs that a name means: a launch, a label, a run folder or a prefix of one, or 'all'."""
    chosen = []
    for launch in known:
        for job in launch.jobs:
            is_run = bool(job.run) and job.run.startswith(name)
            if is_run or name in ("all", launch.name, job.label):
                chosen.append((launch, job))
    return chosen


def _names(known: list[Launch]) -> Iterable[str]:
    names = {launch.name for launch in known}
    for launch in known:
        names |= {job.run or job.label for job in launch.jobs}
    return names


def _stop(launch: Launch, job: Job) -> None:
    """Ask a job to stop; a run saves a checkpoint first (jobs/submitted.py).

    Raises PermissionError for another user's job.
    """
    if launch.executor == "slurm":
        errors = ""
        # Without Slurm on this machine the job's mark must do, which it finds when it starts.
        with suppress(OSError):
            command = ["scancel", job.id]
            errors = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
            ).stderr
        if "permission denied" in errors.lower():
            raise PermissionError(errno.EPERM, "scancel reports that permission is denied")
        return
    # The job's id is submitit's controller process, which forwards the signal. The job may have ended meanwhile.
    with suppress(ProcessLookupError):
        os.kill(int(job.id), signal.SIGTERM)


def latest_job(root: Path, name: str) -> tuple[Launch, Job]:
    """Return the latest submitted job that matches a name. Raises UsageError if there is none."""
    known = _known(root, [name])
    chosen = [(launch, job) for launch, job in _matching(name, known) if job.id]
    if not chosen:
        raise unknown("run with a job", name, _names(known))
    return chosen[-1]


def log_lines(path: Path) -> list[str]:
    """Return the last lines of a log (see `as_shown`)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL))
        return as_shown(file.read())


def as_shown(log: bytes) -> list[str]:
    """Return the lines of a log as a terminal would show them, with control characters as escapes."""
    lines = log.decode(errors="replace").removesuffix("\n").split("\n")
    # A progress bar overwrites its line after each carriage return, so only the last version counts.
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    return [legible(line, lines=True) for line in shown]
