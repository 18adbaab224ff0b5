"""Carry out jobs where a placement says: here one after another, in processes of this machine, or in Slurm.

Jobs go through submitit. Time-outs and preemption are its checkpoint mechanism (bench/jobs/submitted.py) on top of the
store's own checkpoints. A run waits for the jobs of the teachers that it needs. What another launch has submitted is
waited for, not submitted again.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NoReturn

from bench.errors import BenchError, DetachedError, Interrupted, MissingError, UsageError, explained, one_line
from bench.jobs.launches import Job, Launch, launches, new_launch, only_one
from bench.jobs.outcome import CANCELLED, NO_RESULT, failure_of, not_started
from bench.jobs.placement import Placement
from bench.jobs.scheduler import ELSEWHERE, states
from bench.jobs.submitted import CarryOut, Submitted, when_free
from bench.store.provenance import code_hash
from bench.system.interrupts import ENDING, held_back, terminated_is_interrupted
from bench.system.places import check_writable, missing_folders, remove_empty

THREADS = 1
"""Of a local job: two single-threaded runs get more done on two cores than one run on both."""
POLL_S = {"local": 0.2, "slurm": 2.0}
PATIENCE_S = {"local": 2.0, "slurm": 60.0}
"""How long the files of a job that has ended may take to show on this machine."""
AT_ONCE_S = 10.0
"""How long jobs that are to stop at once may take."""
BEAT_S = 60.0
ARRAY = 1000
"""Jobs of one array: Slurm's default limit (MaxArraySize)."""
FOREVER_MIN = 10 * 365 * 24 * 60
TIMEOUTS = 1000
"""How often a job may reach its time limit; bench/jobs/submitted.py ends one that gets no further."""
Report = Callable[[str, str | None], None]


def dispatch(
    jobs: list[Job], carry_out: CarryOut, root: Path, placement: Placement, device: str, report: Report
) -> dict[str, str]:
    """Carry out all jobs; label -> error of those that failed. `carry_out` does the work of one.

    One failure stops no other job but those that need it. `report(label, error or None)` is called as each ends. Raises
    MissingError where there is no Slurm, UsageError where it refuses, DetachedError on an interrupt while Slurm has the
    jobs, which go on, Interrupted once local jobs have been stopped.
    """
    if not jobs:
        return {}
    if placement.profile.gpus and device == "cpu":
        raise UsageError("the profile asks for GPUs, but the runs are on the CPU: add --set device=cuda")
    if placement.executor == "inline":
        return _inline(jobs, carry_out, root, report)
    if placement.executor == "slurm" and not shutil.which("srun"):
        raise MissingError("there is no Slurm on this machine (srun is not on PATH): use --executor local")
    dispatcher = _Dispatcher(jobs, carry_out, root, placement, device, report)
    check_writable(root / "launches")
    made = missing_folders(root / "launches")
    try:
        return dispatcher.carry_out()
    except BenchError:
        if made and not any(path.is_dir() for path in (root / "launches").glob("*")):  # nothing was handed over
            (root / "launches" / "lock").unlink(missing_ok=True)
            remove_empty(made)
        raise


def _inline(jobs: list[Job], carry_out: CarryOut, root: Path, report: Report) -> dict[str, str]:
    failures: dict[str, str] = {}
    for job in jobs:
        failed = [need for need in job.needs if need in failures]
        error = not_started(failed) if failed else None
        if not failed:
            try:
                with redirect_stdout(StringIO()):  # its own table; the whole is shown in the end
                    when_free(carry_out, job.work, root)
            except Exception as problem:  # whatever breaks one run, the others go on
                error = explained(problem)
        if error:
            failures[job.label] = error
        report(job.label, error)
    return failures


@dataclass
class WatchedJob:
    """A submitted job and the launch that it is part of, possibly another command's."""

    launch: Launch
    job: Job
    ended_at: float = 0.0
    """When it was first seen to have ended."""


class _Dispatcher:
    """Submits what can start, watches what was submitted, until nothing is left."""

    def __init__(
        self, jobs: list[Job], work: CarryOut, root: Path, placement: Placement, device: str, report: Report
    ):
        self.work = work
        self.queue, self.root, self.placement, self.report = list(jobs), root, placement, report
        self.slurm = placement.executor == "slurm"
        self.free: list[int | None] = [] if self.slurm else _places(device)
        self.taken: dict[str, int | None] = {}
        self.handles: list = []
        """submitit's handles of local jobs: their processes are children and must be asked after, or stay zombies."""
        self.watched: dict[str, WatchedJob] = {}
        self.failures: dict[str, str] = {}
        self.labels = {job.label for job in jobs}
        self.code = code_hash()
        self.launches: list[Launch] = []
        self.beaten = time.monotonic()

    def carry_out(self) -> dict[str, str]:
        with only_one(self.root):
            pass  # a file system without locks says so before there is anything to clean up
        if not self.slurm:
            self.launches = [new_launch(self.root, "local", self.queue)]
        with terminated_is_interrupted():
            try:
                self._watch()
            except KeyboardInterrupt:
                if not self.slurm:
                    self._stop_jobs()
                elif self.watched:
                    self._leave_jobs()
                raise
        return self.failures

    def _watch(self) -> None:
        """Until nothing is left."""
        while self.queue or self.watched:
            self._drop_what_cannot_start()
            if self.queue and (self.slurm or self.free):
                self._submit()
            for label, error in self._ended():
                self._end(label, error)
            if self.queue or self.watched:
                self._beat()
                time.sleep(POLL_S[self.placement.executor])

    def _leave_jobs(self) -> NoReturn:
        left = f", {len(self.queue)} were not submitted" if self.queue else ""
        raise DetachedError(
            f"{len(self.watched)} of the jobs go on in Slurm{left}: bench status shows them, bench cancel stops them, "
            "and the same command waits for them again"
        ) from None

    def _stop_jobs(self) -> NoReturn:
        """Stop the processes that this command has started: runs after their update, at a second interrupt at once."""
        (launch,) = self.launches
        mine = [watch.job for watch in self.watched.values() if watch.launch is launch]
        for job in mine:
            launch.mark_cancelled(job)
        if mine:
            print(f"stopping {len(mine)} jobs after their updates; once more stops them at once", file=sys.stderr)
        try:
            self._end_processes(mine, None)
        except KeyboardInterrupt:
            self._end_processes(mine, AT_ONCE_S)
        raise Interrupted(f"{len(mine)} jobs were stopped: the same command goes on with them") from None

    def _end_processes(self, jobs: list[Job], patience_s: float | None) -> None:
        """Ask jobs of this machine to end, and wait until they have, but not for ever if there is a limit."""
        for job in jobs:
            with suppress(ProcessLookupError):
                os.kill(int(job.id), signal.SIGTERM)  # to its controller, which hands it on
        begun = time.monotonic()
        while any(not handle.done() for handle in self.handles):
            if patience_s is not None and time.monotonic() - begun > patience_s:
                return
            time.sleep(POLL_S["local"])

    def _beat(self) -> None:
        if time.monotonic() - self.beaten > BEAT_S:
            self.beaten = time.monotonic()
            for launch in self.launches:
                launch.beat()

    def _end(self, label: str, error: str | None) -> None:
        if label in self.taken:
            self.free.append(self.taken.pop(label))
        if error:
            self.failures[label] = error
        self.report(label, error)

    def _drop_what_cannot_start(self) -> None:
        for job in list(self.queue):
            failed = [need for need in job.needs if need in self.failures]
            cancelled = any(launch.cancelled(job) for launch in self.launches)
            if failed or (cancelled and not self.slurm):
                self.queue.remove(job)
                self._end(job.label, not_started(failed) if failed else CANCELLED)

    def _open_needs(self, job: Job) -> list[str]:
        """Jobs that must end before this one and have not; in Slurm those that Slurm can wait for do not count."""
        pending = {other.label for other in self.queue} | self.watched.keys()
        needs = [need for need in job.needs if need in self.labels and need in pending]
        slurms = {label for label, watch in self.watched.items() if watch.launch.executor == "slurm"}
        return [need for need in needs if not (self.slurm and need in slurms)]

    def _submit(self) -> None:
        with only_one(self.root):
            active = _active(self.root)
            if active is None:  # Slurm does not answer: later
                return
            for job in list(self.queue):
                if found := active.get(_identity(job)):
                    self.queue.remove(job)
                    self.watched[job.label] = found
                elif self._is_done(job):  # by a job of another command, since this one looked
                    self.queue.remove(job)
                    self._end(job.label, None)
            ready = [job for job in self.queue if not self._open_needs(job)]
            if self.slurm:
                for group in _groups(ready):
                    self._hand_over(group)
                    ready = [job for job in self.queue if not self._open_needs(job)]
                for group in _groups(ready):  # what needs those that were just submitted
                    self._hand_over(group)
                return
            for job in ready[: len(self.free)]:
                self._start(job)

    def _start(self, job: Job) -> None:
        """As a process of this machine."""
        from submitit.core.utils import environment_variables

        (launch,) = self.launches
        place = self.free.pop(0)
        executor = _executor(launch, "local", timeout_min=FOREVER_MIN)
        if place is not None:
            executor.update_parameters(gpus_per_node=1, visible_gpus=(place,))
        with held_back():
            with environment_variables(OMP_NUM_THREADS=THREADS):
                handle = executor.submit(self._submitted(job, launch))
            (known,) = launch.submitted({job.label: handle.job_id})
            self.handles.append(handle)
            self.taken[job.label] = place
            self.queue.remove(job)
            self.watched[job.label] = WatchedJob(launch, known)

    def _hand_over(self, group: list[Job]) -> None:
        """To Slurm, as one array; it starts when the jobs that it waits for are done."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        launch = new_launch(self.root, "slurm", group)
        waits = [self.watched[need].job.id for need in group[0].needs if need in self.watched]
        dependency = f"afterok:{':'.join(waits)}" if waits else None
        parameters = self.placement.profile.parameters(launch.name, launch.job_folder, dependency)
        executor = _executor(launch, "slurm", **parameters)
        try:
            with undisturbed():
                handles = executor.submit_array([self._submitted(job, launch) for job in group])
                known = launch.submitted({job.label: h.job_id for job, h in zip(group, handles, strict=True)})
        except (FailedJobError, FailedSubmissionError) as error:
            shutil.rmtree(launch.folder, ignore_errors=True)  # nothing of it came to be
            others = f"; {len(self.watched)} jobs were submitted before and go on" if self.watched else ""
            raise UsageError(f"Slurm refuses the jobs: {one_line(error)}{others}") from error
        self.launches.append(launch)
        for job in known:
            self.watched[job.label] = WatchedJob(launch, job)
        self.queue = [job for job in self.queue if job.label not in self.watched]

    def _submitted(self, job: Job, launch: Launch) -> Submitted:
        return Submitted(self.work, launch.folder, job.label, self.root, job.run, self.code)

    def _ended(self) -> Iterator[tuple[str, str | None]]:
        """Take jobs that have ended out of `watched`; yields (label, error or None)."""
        self.handles = [handle for handle in self.handles if not handle.done()]
        answers = states(list({w.launch.name: w.launch for w in self.watched.values()}.values()))
        if answers is None:
            return
        now = time.monotonic()
        for label, watch in list(self.watched.items()):
            state = answers[watch.launch.name, watch.job.label]
            if state.active or (state.name == ELSEWHERE and not self._is_done(watch.job)):
                watch.ended_at = 0.0
                continue
            if not watch.ended_at:  # once is not enough: a job that is being requeued may be between two states
                watch.ended_at = now
                continue
            error = failure_of(watch.launch, watch.job, self.root, state)
            if error and error.startswith(NO_RESULT) and now - watch.ended_at < PATIENCE_S[watch.launch.executor]:
                continue
            del self.watched[label]
            yield label, error

    def _is_done(self, job: Job) -> bool:
        """Whether a run has its result, whoever made it."""
        return bool(job.run) and (self.root / job.run / "summary.json").is_file()


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interrupt comes after: what was submitted must be on record. (Jobs would inherit a signal mask.)"""
    came: list[int] = []
    handlers = {signal.SIGINT: signal.default_int_handler} | ENDING
    before = {number: handler for number, handler in handlers.items() if signal.getsignal(number) is handler}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _places(device: str) -> list[int | None]:
    """One entry a run at a time: the GPUs of this machine, or as many as it has cores."""
    if device.startswith("cuda"):
        import torch

        if device != "cuda":
            raise UsageError(f"runs of this machine's processes each get a GPU of their own: device=cuda, not {device}")
        count = torch.cuda.device_count()
        if not count:
            raise MissingError(f"the runs are to be on {device!r} but torch sees no GPU; use --set device=cpu")
        return list(range(count))
    return [None] * max(1, len(os.sched_getaffinity(0)) // THREADS)


def _groups(jobs: list[Job]) -> list[list[Job]]:
    """Jobs of equal needs, in portions that one array takes."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.needs, []).append(job)
    return [group[i : i + ARRAY] for group in groups.values() for i in range(0, len(group), ARRAY)]


def _executor(launch: Launch, cluster: str, **parameters):
    from submitit import AutoExecutor

    executor = AutoExecutor(launch.job_folder, cluster=cluster, **{f"{cluster}_max_num_timeout": TIMEOUTS})
    executor.update_parameters(**parameters)
    return executor


def _identity(job: Job) -> Hashable:
    """What two commands that want the same thing have in common."""
    return job.run or (job.label, job.digest)


def _active(root: Path) -> dict[Hashable, WatchedJob] | None:
    """The jobs that are waiting or running, by what they do; None if Slurm does not answer."""
    known = [launch for launch in launches(root) if any(_open(root, job) for job in launch.jobs)]
    answers = states(known)
    if answers is None:
        return None
    return {
        _identity(job): WatchedJob(launch, job)
        for launch in known
        for job in launch.jobs
        if (state := answers.get((launch.name, job.label))) and state.active
    }


def _open(root: Path, job: Job) -> bool:
    return bool(job.id) and not (job.run and (root / job.run / "summary.json").is_file())
