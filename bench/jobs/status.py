"""What runs and jobs are doing, from the files and the queue alone; and stopping them.

Imports neither torch nor a method: it must answer at once, and over thousands of runs.
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
"""What makes a folder a run's."""
NAMED = re.compile(r".+-[0-9a-f]{10}-s[0-9]+")
"""How a run's folder is called."""
QUIET_S = 900
"""A run on another machine that has not written for this long does not run any more."""
TAIL = 65_536
LOCK = 4096
"""Bytes of a lock file that are looked at: it holds one line."""
LOG_TAIL = 2**20


@dataclass(frozen=True)
class StatusRow:
    """One run, or one job that makes no run."""

    name: str
    state: str
    fraction: float | None = None
    """Of its budget, if it has begun."""
    left_s: float | None = None
    where: str = ""
    note: str = ""
    """The error of a failed one, what a pending one waits for."""


def survey(root: Path) -> list[StatusRow]:
    """Every run and job of a results folder, by state and name; what cannot be read is among them as damaged."""
    known, damaged = read_launches(root)
    answers = states(known)
    latest: dict[str, tuple[Launch, Job, State | None]] = {}
    for launch in known:
        for job in launch.jobs:
            if not job.id and not _will_submit(launch, job):
                continue
            state = answers.get((launch.name, job.label)) if answers is not None else None
            latest[job.run or f"{launch.name}: {job.label}"] = (launch, job, state)
    runs = {folder.name for folder in _entries(root) if _begun(folder)}
    lines = [_line(root, name, latest.get(name), answers is None) for name in runs | latest.keys()]
    lines += [StatusRow(f"launches/{name}".rstrip("/"), "damaged", note=note) for name, note in damaged.items()]
    return sorted(lines, key=lambda line: (ORDER.index(line.state), line.name))


def _entries(root: Path) -> list[Path]:
    """Of a results folder, which may not be there yet. Raises OSError if it may not be looked into."""
    try:
        return list(root.iterdir())
    except FileNotFoundError:
        return []


def _begun(folder: Path) -> bool:
    """Whether a folder is a run's; a file that is a link to nowhere, or to itself, is there too. One that may not be
    looked into is what its name says."""
    try:
        return any(is_there(folder / file) for file in BEGUN)
    except OSError:
        return bool(NAMED.fullmatch(folder.name))


def _line(root: Path, name: str, handed: tuple[Launch, Job, State | None] | None, silent: bool) -> StatusRow:
    try:
        if _begun(root / name):
            check_settings(root / name)
        line = _read_line(root, name, handed, silent)
        if line.state in ("failed", "stopped"):
            check_resumable(root / name)
        return line
    except (DamagedError, OSError) as error:
        return StatusRow(name, "damaged", note=one_line(error))


def _read_line(root: Path, name: str, handed: tuple[Launch, Job, State | None] | None, silent: bool) -> StatusRow:
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
        return StatusRow(name, "stopped", fraction, None, place, f"not seen from here: ask on {state.where}")
    if launch and job and state:
        error = failure_of(launch, job, root, state)
        verdict = {None: "done", CANCELLED: "stopped"}.get(error, "failed")
        return StatusRow(name, verdict, fraction, None, place, error or "")
    if launch and job and not job.id:
        return StatusRow(name, "pending", fraction, None, launch.executor, "waits for a free place")
    if error := recorded_failure(folder):
        return StatusRow(name, "failed", fraction, None, "", error)
    return StatusRow(name, "stopped", fraction, None, "", "the same command goes on")


def _will_submit(launch: Launch, job: Job) -> bool:
    """Whether the command that would submit a job is still there to do it."""
    alive = lives(launch.owner)
    if alive is None:  # on another machine
        alive = time.time() - launch.beaten < QUIET_S
    return alive and not launch.cancelled(job)


def _owner(folder: Path, guess: bool) -> str:
    """The process that has a run in hand, if one does; with `guess` also one of another machine that wrote lately."""
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
    """Share of the budget and seconds left at the rate until now. Raises DamagedError for a log that is none."""
    metrics = folder / "metrics.jsonl"
    if not os.path.lexists(metrics):
        return None, None
    with open_file(metrics) as file:
        file.seek(max(0, metrics.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]  # what follows the last line break is still being written
    if not lines:
        return 0.0, None
    budget = check_settings(folder)["budget"]
    with described(metrics):
        row = parse_json(lines[-1].decode(), f"the last line of {metrics}")
        clocks, nfe = row["seconds"], row["evaluations"].get("training", 0)
        done = {
            "updates": row["step"],
            "nfe": nfe,
            "evaluations": nfe,  # as older records call the budget
            "seconds": clocks.get("training", 0) + clocks.get("scoring", 0),
        }
        spent = sum(seconds for name, seconds in clocks.items() if name != "idle")
        fraction = min(1.0, next((done[name] / whole for name, whole in budget.items() if whole), 0.0))
        left = spent * (1 - fraction) / fraction if fraction else None
        if not all(0 <= number < math.inf for number in (*done.values(), spent, left or 0)):
            raise ValueError("its last line counts what cannot be")
        return fraction, left


def cancel(root: Path, names: list[str]) -> list[str]:
    """Stop jobs of runs (their folders' names, or beginnings of them), of launches, or 'all'; returns their names.

    What they have checkpointed stays: the same command goes on. Raises UsageError for a name that no job has, and, once
    all others have been asked, PartialError naming the jobs that could not be, as those of another user.
    """
    known = _known(root, names)
    answers = states(known)
    if answers is None:
        raise BenchError("Slurm does not answer (squeue failed): nothing was cancelled")
    stopped: list[str] = []
    refused: dict[str, str] = {}
    for name in names:
        chosen = [(launch, job) for launch in known for job in launch.jobs if _meant(name, launch, job)]
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
    stopped = list(dict.fromkeys(stopped))  # two launches may have named the same run
    if refused:
        others = f"; cancelled: {', '.join(stopped)}" if stopped else ""
        told = ", ".join(f"{name} ({cause})" for name, cause in refused.items())
        raise PartialError(f"not cancelled: {told}{others}")
    return stopped


def _asked_to_stop(launch: Launch, job: Job) -> str:
    """Mark a job as cancelled and ask it to stop; returns why it could not be asked, having taken a new mark back."""
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
    """The launches that can be read; of the others one line.

    Raises UsageError for a name that says nothing, DamagedError for that of a damaged launch.
    """
    if not all(name.strip() for name in names):
        raise UsageError("an empty name means every run: name a run folder, the beginning of one, or a launch")
    known, damaged = read_launches(root)
    for launch, what in damaged.items():
        if launch in names:
            raise DamagedError(what)
        print(f"note: {legible(what)}; its jobs are left alone", file=sys.stderr)
    return known


def _meant(name: str, launch: Launch, job: Job) -> bool:
    return name in ("all", launch.name, job.label) or bool(job.run and job.run.startswith(name))


def _names(known: list[Launch]) -> Iterable[str]:
    return {launch.name for launch in known} | {job.run or job.label for launch in known for job in launch.jobs}


def _stop(launch: Launch, job: Job) -> None:
    """Ask a job to stop; a run checkpoints first (jobs/submitted.py). Raises PermissionError for another user's job."""
    if launch.executor == "slurm":
        said = ""
        with suppress(OSError):  # it may have gone since it was asked after; its mark stays in any case
            command = ["scancel", job.id]
            said = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
            ).stderr
        if "permission denied" in said.lower():
            raise PermissionError(errno.EPERM, "scancel says that permission is denied")
        return
    with suppress(ProcessLookupError):
        os.kill(int(job.id), signal.SIGTERM)  # its controller hands it on


def latest_job(root: Path, name: str) -> tuple[Launch, Job]:
    """The latest submitted job that a name means. Raises UsageError if there is none."""
    known = _known(root, [name])
    chosen = [(launch, job) for launch in known for job in launch.jobs if job.id and _meant(name, launch, job)]
    if not chosen:
        raise unknown("run with a job", name, _names(known))
    return chosen[-1]


def log_lines(path: Path) -> list[str]:
    """The lines at the end of a log as a terminal would show them, but with nothing that it would obey."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL))
        lines = file.read().decode(errors="replace").removesuffix("\n").split("\n")
    return [legible(line.rstrip("\r").rpartition("\r")[2], lines=True) for line in lines]  # a bar is drawn over
