"""Carry out `bench` commands where a placement says: here one after another, in processes of this machine, in Slurm.

Jobs go through submitit. Time-outs and preemption are its checkpoint mechanism (bench/job.py) on top of the store's own
checkpoints; who needs a teacher waits for its job; a run that another launch already has in hand is waited for, not
submitted again.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from bench.errors import BenchError, DetachedError, MissingError, UsageError, one_line
from bench.job import Command, carry_out
from bench.launches import Job, Launch, launches, new_launch, only_one
from bench.outcome import failure_of
from bench.placement import Placement
from bench.provenance import code_hash
from bench.scheduler import states

THREADS = 1
"""Of a local job: two single-threaded runs get more done on two cores than one run on both."""
POLL_S = {"local": 0.1, "slurm": 2.0}
FOREVER_MIN = 10 * 365 * 24 * 60
TIMEOUTS = 1000
"""How often a job may reach its time limit; bench/job.py ends one that gets no further."""
Report = Callable[[str, str | None], None]


def dispatch(jobs: list[Job], root: Path, placement: Placement, device: str, report: Report) -> dict[str, str]:
    """Carry out all jobs; label -> error of those that failed.

    One failure stops no other job. `report(label, error or None)` is called as each ends. Raises MissingError where
    there is no Slurm, DetachedError on an interrupt while Slurm has the jobs, which go on.
    """
    if not jobs:
        return {}
    if placement.executor == "inline":
        return _inline(jobs, report)
    if placement.executor == "slurm":
        return _slurm(jobs, root, placement, report)
    return _local(jobs, root, device, report)


def _inline(jobs: list[Job], report: Report) -> dict[str, str]:
    failures = {}
    for job in jobs:
        error = None
        try:
            with redirect_stdout(StringIO()):  # its own table; the whole is shown in the end
                carry_out(job.arguments)
        except BenchError as problem:
            error = failures[job.label] = one_line(problem)
        report(job.label, error)
    return failures


@dataclass
class Watched:
    """A submitted job and the launch that it is part of, possibly another command's."""

    launch: Launch
    job: Job
    missed: int = 0
    """How often in a row it was not active when asked."""


def _local(jobs: list[Job], root: Path, device: str, report: Report) -> dict[str, str]:
    from submitit.core.utils import environment_variables

    launch, free, queue = new_launch(root, "local", jobs), _places(device), list(jobs)
    watched: dict[str, Watched] = {}
    taken: dict[str, int | None] = {}
    failures: dict[str, str] = {}
    ended: set[str] = set()
    names = {job.label for job in jobs}
    code = code_hash()
    while queue or watched:
        if launch.cancelled():
            for job in queue:
                failures[job.label] = "cancelled"
                report(job.label, "cancelled")
            queue = []
        with only_one(root):
            active = _active(root)
            for job in list(queue):
                if not free:
                    break
                if not ended.issuperset(set(job.needs) & names):
                    continue
                queue.remove(job)
                if failed := [need for need in job.needs if need in failures]:
                    failures[job.label] = f"not started: {', '.join(failed)} did not end well"
                    ended.add(job.label)
                    report(job.label, failures[job.label])
                    continue
                if job.run and job.run in active:
                    watched[job.label] = active[job.run]
                    continue
                taken[job.label] = place = free.pop(0)
                executor = _executor(launch, "local", timeout_min=FOREVER_MIN)
                if place is not None:
                    executor.update_parameters(gpus_per_node=1, visible_gpus=(place,))
                with environment_variables(OMP_NUM_THREADS=THREADS):
                    handle = executor.submit(_command(job, root, code))
                _HANDLES.append(handle)
                watched[job.label] = Watched(launch, launch.submitted(job, handle.job_id))
        for label, error in _ended(watched, root):
            ended.add(label)
            if label in taken:
                free.append(taken.pop(label))
            if error:
                failures[label] = error
            report(label, error)
        time.sleep(POLL_S["local"])
    return failures


_HANDLES: list = []
"""submitit's handles of local jobs: whose process is a child of this one must be asked after it, or stays a zombie."""


def _places(device: str) -> list[int | None]:
    """One entry a run at a time: the GPUs of this machine, or as many as it has cores."""
    if device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count()
        if not count:
            raise MissingError(f"the runs are to be on {device!r} but torch sees no GPU; use --set device=cpu")
        return list(range(count))
    return [None] * max(1, len(os.sched_getaffinity(0)) // THREADS)


def _slurm(jobs: list[Job], root: Path, placement: Placement, report: Report) -> dict[str, str]:
    watched: dict[str, Watched] = {}
    with only_one(root):
        active = _active(root)
        for job in jobs:
            if job.run and job.run in active:
                watched[job.label] = active[job.run]
        fresh = [job for job in jobs if job.label not in watched]
        for needs, group in _in_order(fresh):
            launch = new_launch(root, "slurm", group)
            waits = [watched[label].job.id for label in needs if label in watched]
            for job, handle in zip(group, _submit(group, launch, root, placement, waits), strict=True):
                watched[job.label] = Watched(launch, launch.submitted(job, handle.job_id))
    failures: dict[str, str] = {}
    try:
        while watched:
            for label, error in _ended(watched, root):
                if error:
                    failures[label] = error
                report(label, error)
            time.sleep(POLL_S["slurm"] if watched else 0)
    except KeyboardInterrupt:
        raise DetachedError(
            f"{len(watched)} of the jobs go on in Slurm: bench status shows them, bench cancel stops them, and the "
            "same command waits for them again"
        ) from None
    return failures


def _in_order(jobs: list[Job]) -> list[tuple[tuple[str, ...], list[Job]]]:
    """Jobs in groups of equal needs, those that are needed first."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.needs, []).append(job)
    return sorted(groups.items(), key=lambda item: len(item[0]) > 0)


def _submit(jobs: list[Job], launch: Launch, root: Path, placement: Placement, waits: list[str]) -> list:
    """Submit as one array; jobs start when those that they wait for are done."""
    dependency = f"afterok:{':'.join(waits)}" if waits else None
    executor = _executor(launch, "slurm", **placement.profile.parameters("bench", dependency))
    code = code_hash()
    from submitit.core.utils import FailedJobError

    try:
        return executor.submit_array([_command(job, root, code) for job in jobs])
    except FailedJobError as error:
        raise UsageError(f"Slurm refuses the jobs: {one_line(error)}") from error


def _executor(launch: Launch, cluster: str, **parameters):
    from submitit import AutoExecutor

    try:
        executor = AutoExecutor(launch.job_folder, cluster=cluster, **{f"{cluster}_max_num_timeout": TIMEOUTS})
    except RuntimeError as error:  # submitit's word for a machine without srun
        raise MissingError("there is no Slurm on this machine (srun is not on PATH): use --executor local") from error
    executor.update_parameters(**parameters)
    return executor


def _command(job: Job, root: Path, code: str) -> Command:
    return Command(job.arguments, root / job.run if job.run else None, code)


def _active(root: Path) -> dict[str, Watched]:
    """Run folder -> the job that has it in hand."""
    known = launches(root)
    answers = states(known)
    if answers is None:
        raise BenchError("Slurm does not answer (squeue failed): nothing was submitted; try again")
    return {
        job.run: Watched(launch, job)
        for launch in known
        for job in launch.jobs
        if job.run and (state := answers.get((launch.name, job.label))) and state.active
    }


def _ended(watched: dict[str, Watched], root: Path) -> Iterable[tuple[str, str | None]]:
    """Take jobs that have ended out of `watched`; yields (label, error or None)."""
    for handle in list(_HANDLES):
        if handle.done():
            _HANDLES.remove(handle)
    answers = states(list({w.launch.name: w.launch for w in watched.values()}.values()))
    if answers is None:
        return
    for label, watch in list(watched.items()):
        state = answers.get((watch.launch.name, watch.job.label))
        if state is None or state.active:
            watch.missed = 0
            continue
        watch.missed += 1
        if watch.missed < 2:  # a job that is being requeued may be between two states
            continue
        del watched[label]
        yield label, failure_of(watch.launch, watch.job, root, state)
