"""Carrying out jobs where a placement says: one after another in this process, in local processes, or in Slurm.

Jobs are submitted through submitit. Its checkpoint mechanism (bench/jobs/submitted.py) handles time limits and
preemption on top of the runs' own checkpoints. A run waits for the jobs of the teachers that it needs. A job that
another launch has already submitted is waited for, not submitted again.
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
"""Number of threads per local job: two single-threaded runs make more progress on two cores than one run on both."""
POLL_S = {"local": 0.2, "slurm": 2.0}
"""Executor -> seconds between two looks at the jobs."""
PATIENCE_S = {"local": 2.0, "slurm": 60.0}
"""Executor -> seconds that the files of an ended job may take to become visible on this machine."""
AT_ONCE_S = 10.0
"""Seconds that jobs may take to stop after a second interrupt."""
BEAT_S = 60.0
"""Seconds between two signs of life of a launch's owner (`Launch.beat`)."""
ARRAY = 1000
"""Maximal number of jobs per array: Slurm's default limit (MaxArraySize)."""
FOREVER_MIN = 10 * 365 * 24 * 60
TIMEOUTS = 1000
"""How often a job may reach its time limit. A job that makes no progress ends earlier (bench/jobs/submitted.py)."""
Report = Callable[[str, str | None], None]
"""Called with a job's label, and its error or None, when the job has ended."""


def dispatch(
    jobs: list[Job], carry_out: CarryOut, root: Path, placement: Placement, device: str, report: Report
) -> dict[str, str]:
    """Carry out all jobs and return label -> error of those that failed. `carry_out` does the work of one job.

    A failure affects only the jobs that need the failed one. `report(label, error or None)` is called as each job ends.
    Raises MissingError if Slurm is not installed, UsageError if Slurm rejects the jobs, DetachedError on an interrupt
    while jobs continue in Slurm, and Interrupted after an interrupt has stopped local jobs.
    """
    if not jobs:
        return {}
    refuse_placement(placement, root, device)
    if placement.executor == "inline":
        return _inline(jobs, carry_out, root, report)
    if placement.executor == "slurm" and not shutil.which("srun"):
        raise MissingError("there is no Slurm on this machine (srun is not on PATH): use --executor local")
    dispatcher = _Dispatcher(jobs, carry_out, root, placement, device, report)
    home = root / "launches"
    made = missing_folders(home)
    try:
        return dispatcher.carry_out()
    except BenchError:
        # Nothing was submitted if no launch has a folder. The command then leaves nothing behind.
        submitted = any(path.is_dir() for path in home.glob("*"))
        if made and not submitted:
            (home / "lock").unlink(missing_ok=True)
            remove_empty(made)
        raise


def refuse_placement(placement: Placement, root: Path, device: str) -> None:
    """Raise UsageError if a placement cannot carry out work on this device, or its jobs cannot be written to `root`.

    Leaves nothing behind. Whether Slurm is installed is not asked, so that a dry run works anywhere.
    """
    if placement.profile.gpus and device == "cpu":
        raise UsageError("the profile asks for GPUs, but the runs are on the CPU: add --set device=cuda")
    if placement.executor != "inline":
        check_writable(root / "launches")


def _inline(jobs: list[Job], carry_out: CarryOut, root: Path, report: Report) -> dict[str, str]:
    failures: dict[str, str] = {}
    for job in jobs:
        failed = [need for need in job.needs if need in failures]
        error = not_started(failed) if failed else None
        if not failed:
            try:
                # A run prints its own table, but the command prints one of all runs at the end.
                with redirect_stdout(StringIO()):
                    when_free(carry_out, job.work, root)
            # Whatever makes one run fail, the others continue.
            except Exception as problem:
                error = explained(problem)
        if error:
            failures[job.label] = error
        report(job.label, error)
    return failures


@dataclass
class WatchedJob:
    """A submitted job and its launch, which may belong to another command."""

    launch: Launch
    job: Job
    ended_at: float = 0.0
    """Time (`time.monotonic`) at which the job was first seen to have ended; 0 before that."""


class _Dispatcher:
    """Submits jobs as soon as they can start, and watches the submitted ones until all have ended."""

    def __init__(self, jobs: list[Job], work: CarryOut, root: Path, placement: Placement, device: str, report: Report):
        self.work = work
        self.queue, self.root, self.placement, self.report = list(jobs), root, placement, report
        self.slurm = placement.executor == "slurm"
        self.free: list[int | None] = [] if self.slurm else _places(device)
        self.taken: dict[str, int | None] = {}
        self.handles: list = []
        """submitit's handles of local jobs. Their processes are children, which stay zombies unless they are polled."""
        self.watched: dict[str, WatchedJob] = {}
        self.failures: dict[str, str] = {}
        self.labels = {job.label for job in jobs}
        self.code = code_hash()
        self.launches: list[Launch] = []
        self.beaten = time.monotonic()

    def carry_out(self) -> dict[str, str]:
        # A file system without locks must raise its error before there is anything to clean up.
        with only_one(self.root):
            pass
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
        """Submit and watch jobs until all have ended."""
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
        left = f", not submitted: {len(self.queue)}" if self.queue else ""
        raise DetachedError(
            f"jobs that continue in Slurm: {len(self.watched)}{left}; bench status shows them, bench cancel stops "
            "them, and rerunning the command waits for them"
        ) from None

    def _stop_jobs(self) -> NoReturn:
        """Stop the processes that this command has started: after their updates, or now at a second interrupt."""
        (launch,) = self.launches
        mine = [watch.job for watch in self.watched.values() if watch.launch is launch]
        for job in mine:
            launch.mark_cancelled(job)
        if mine:
            line = f"jobs that stop after their current update: {len(mine)}; interrupt again to stop them now"
            print(line, file=sys.stderr)
        try:
            self._end_processes(mine, None)
        except KeyboardInterrupt:
            self._end_processes(mine, AT_ONCE_S)
        raise Interrupted(f"jobs stopped: {len(mine)}; rerun the command to resume") from None

    def _end_processes(self, jobs: list[Job], patience_s: float | None) -> None:
        """Ask local jobs to end and wait until they have, for at most `patience_s` seconds unless it is None."""
        for job in jobs:
            # The job's id is submitit's controller process, which forwards the signal.
            with suppress(ProcessLookupError):
                os.kill(int(job.id), signal.SIGTERM)
        asked = time.monotonic()
        while any(not handle.done() for handle in self.handles):
            if patience_s is not None and time.monotonic() - asked > patience_s:
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
        """Return the jobs that must end before this one can be submitted.

        In Slurm, jobs that are already there do not count: the new job becomes dependent on them.
        """
        pending = {other.label for other in self.queue} | self.watched.keys()
        needs = [need for need in job.needs if need in self.labels and need in pending]
        if not self.slurm:
            return needs
        return [need for need in needs if need not in self.watched or self.watched[need].launch.executor != "slurm"]

    def _submit(self) -> None:
        with only_one(self.root):
            active = _active(self.root)
            # Slurm does not answer, so this is tried again at the next poll.
            if active is None:
                return
            for job in list(self.queue):
                if found := active.get(_identity(job)):
                    self.queue.remove(job)
                    self.watched[job.label] = found
                # A job of another command may have finished this run since the queue was made.
                elif self._is_done(job):
                    self.queue.remove(job)
                    self._end(job.label, None)
            ready = [job for job in self.queue if not self._open_needs(job)]
            if self.slurm:
                for group in _groups(ready):
                    self._hand_over(group)
                    ready = [job for job in self.queue if not self._open_needs(job)]
                # These need jobs that have just been submitted.
                for group in _groups(ready):
                    self._hand_over(group)
                return
            for job in ready[: len(self.free)]:
                self._start(job)

    def _start(self, job: Job) -> None:
        """Start a job as a local process on a free GPU or core."""
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
        """Submit jobs with equal needs to Slurm as one array, which starts when the jobs that it needs are done."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        launch = new_launch(self.root, "slurm", group)
        needed = [self.watched[need].job for need in group[0].needs if need in self.watched]
        dependency = f"afterok:{':'.join(job.id for job in needed)}" if needed else None
        parameters = self.placement.profile.parameters(launch.name, launch.job_folder, dependency)
        executor = _executor(launch, "slurm", **parameters)
        try:
            with undisturbed():
                handles = executor.submit_array([self._submitted(job, launch) for job in group])
                pairs = zip(group, handles, strict=True)
                known = launch.submitted({job.label: handle.job_id for job, handle in pairs})
        except (FailedJobError, FailedSubmissionError) as error:
            # None of the launch's jobs exist.
            shutil.rmtree(launch.folder, ignore_errors=True)
            others = f"; jobs submitted earlier continue: {len(self.watched)}" if self.watched else ""
            raise UsageError(f"Slurm rejected the jobs: {one_line(error)}{others}") from error
        self.launches.append(launch)
        for job in known:
            self.watched[job.label] = WatchedJob(launch, job)
        self.queue = [job for job in self.queue if job.label not in self.watched]

    def _submitted(self, job: Job, launch: Launch) -> Submitted:
        return Submitted(self.work, launch.folder, job.label, self.root, job.run, self.code)

    def _ended(self) -> Iterator[tuple[str, str | None]]:
        """Remove jobs that have ended from `watched`; yields (label, error or None)."""
        self.handles = [handle for handle in self.handles if not handle.done()]
        watched_launches = {watch.launch.name: watch.launch for watch in self.watched.values()}
        answers = states(list(watched_launches.values()))
        if answers is None:
            return
        now = time.monotonic()
        for label, watch in list(self.watched.items()):
            state = answers[watch.launch.name, watch.job.label]
            if state.active or (state.name == ELSEWHERE and not self._is_done(watch.job)):
                watch.ended_at = 0.0
                continue
            # A job must be seen ended twice, because one that is being requeued may be between two states.
            if not watch.ended_at:
                watch.ended_at = now
                continue
            error = failure_of(watch.launch, watch.job, self.root, state)
            patience_s = PATIENCE_S[watch.launch.executor]
            # The result may exist but not be visible yet through a network file system.
            if error and error.startswith(NO_RESULT) and now - watch.ended_at < patience_s:
                continue
            del self.watched[label]
            yield label, error

    def _is_done(self, job: Job) -> bool:
        """Return whether a job's run is finished, whichever command made it."""
        return _has_summary(self.root, job)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Defer interrupts to the end of the block, so that a submission is always recorded.

    Handlers are replaced instead of blocking the signals, because sbatch would pass a signal mask on to the jobs.
    """
    came: list[int] = []
    handlers = {signal.SIGINT: signal.default_int_handler} | ENDING
    # Only this command's own handlers are replaced: an ignored signal stays ignored.
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
    """Return one slot per run that may execute at the same time: GPU numbers, or None once per core on the CPU."""
    if device.startswith("cuda"):
        import torch

        if device != "cuda":
            raise UsageError(f"every local run gets its own GPU: use device=cuda, not {device}")
        count = torch.cuda.device_count()
        if not count:
            raise MissingError(f"the runs need {device!r}, but torch sees no GPU: use --set device=cpu")
        return list(range(count))
    return [None] * max(1, len(os.sched_getaffinity(0)) // THREADS)


def _groups(jobs: list[Job]) -> list[list[Job]]:
    """Group jobs with equal needs, at most ARRAY jobs per group."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.needs, []).append(job)
    arrays = []
    for group in groups.values():
        starts = range(0, len(group), ARRAY)
        arrays += [group[start : start + ARRAY] for start in starts]
    return arrays


def _executor(launch: Launch, cluster: str, **parameters):
    from submitit import AutoExecutor

    executor = AutoExecutor(launch.job_folder, cluster=cluster, **{f"{cluster}_max_num_timeout": TIMEOUTS})
    executor.update_parameters(**parameters)
    return executor


def _identity(job: Job) -> Hashable:
    """Return a key that is equal for jobs of different commands that do the same work."""
    return job.run or (job.label, job.digest)


def _active(root: Path) -> dict[Hashable, WatchedJob] | None:
    """Return the pending and running jobs of all launches by `_identity`; None if Slurm does not answer."""
    # Launches whose runs all have results are left out, so that old ones cost no query.
    known = [launch for launch in launches(root) if any(_open(root, job) for job in launch.jobs)]
    answers = states(known)
    if answers is None:
        return None
    active: dict[Hashable, WatchedJob] = {}
    for launch in known:
        for job in launch.jobs:
            state = answers.get((launch.name, job.label))
            if state and state.active:
                active[_identity(job)] = WatchedJob(launch, job)
    return active


def _open(root: Path, job: Job) -> bool:
    """Return whether a job was submitted and its run, if it makes one, is not finished."""
    return bool(job.id) and not _has_summary(root, job)


def _has_summary(root: Path, job: Job) -> bool:
    return bool(job.run) and (root / job.run / "summary.json").is_file()
