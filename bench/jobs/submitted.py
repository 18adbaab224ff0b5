"""A job as submitit sees it: the object that it pickles, calls, and asks to checkpoint."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.helpers import Checkpointable, DelayedSubmission, TorchDistributedEnvironment

from bench.errors import BenchError, BusyError, UsageError, explained, one_line
from bench.jobs.launches import cancelled_file, told_file, work_file
from bench.jobs.outcome import DONE, FAILED, STOPPED
from bench.store.provenance import code_hash
from bench.system.files import json_bytes, read_record, write_atomic
from bench.system.interrupts import terminated_is_interrupted
from bench.system.workers import launched

STARTS = 5
"""A run that makes no progress in so many consecutive starts is given up."""
BUSY_S = 5.0
"""Seconds between two attempts to start a run that another process holds."""
CarryOut = Callable[[dict[str, Any], Path], None]
"""Does a job's work, given as plain data, in a results folder. A pickle has only its name, so it must be importable."""


class Submitted(Checkpointable):
    """Does the work of one job of a launch. A requeued job resumes from its run's last checkpoint."""

    def __init__(
        self, carry_out: CarryOut, launch: Path, label: str, root: Path, run: str, code: str, idle_starts: int = 0
    ):
        """Describe a job.

        `launch` (a folder) and `label` identify it, `run` is the name of the run folder that it makes in `root`, or
        empty, `code` is the hash of the code at submission, and `idle_starts` counts the starts without progress.
        """
        self.carry_out, self.launch, self.label, self.root = carry_out, launch, label, root
        self.run = root / run if run else None
        self.code, self.idle_starts = code, idle_starts
        self._before = 0.0

    def __call__(self) -> None:
        """Do the job's work and report its outcome.

        Raises what the work raises, UsageError if the code has changed since submission, and SystemExit if the job was
        stopped.
        """
        signal.signal(signal.SIGTERM, self._asked_to_end)
        try:
            # The user may have cancelled the job before this process could receive a signal.
            if self._cancelled():
                raise KeyboardInterrupt
            self._carry_out()
        except KeyboardInterrupt as stop:
            message = one_line(stop) if str(stop) else "interrupted"
            self._tell(STOPPED, message)
            print(message, file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            # A failure to write the report must not hide the error itself.
            with suppress(OSError):
                self._tell(FAILED, explained(error))
            raise
        self._tell(DONE, "")

    def _carry_out(self) -> None:
        if (now := code_hash()) != self.code:
            raise UsageError(f"the code has changed since this job was submitted ({self.code} to {now}): submit again")
        if launched("SLURM_NTASKS", 1) > 1:
            # All GPUs stay visible, because each process uses the GPU with its local rank.
            TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
        self._before = self._newest()
        with terminated_is_interrupted():
            work = read_record(work_file(self.launch, self.label))
            when_free(self.carry_out, work, self.root)

    def _asked_to_end(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM as an interrupt, after which a run finishes its update.

        Slurm also sends SIGTERM before it preempts a job, which it starts again later. In Slurm the signal therefore
        counts only if a user has cancelled the job.
        """
        if "SLURM_JOB_ID" in os.environ and not self._cancelled():
            return
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    def _cancelled(self) -> bool:
        return cancelled_file(self.launch, self.label).exists()

    def _tell(self, outcome: str, error: str) -> None:
        """Record the outcome for `bench status` and waiting commands, which do not read submitit's pickles."""
        # Only the first of a run's processes writes.
        if os.environ.get("SLURM_PROCID", "0") != "0":
            return
        path = told_file(self.launch, self.label)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json_bytes({"outcome": outcome, "error": error}))

    def checkpoint(self) -> DelayedSubmission:
        """Return the job to requeue; submitit calls this before a time limit and on preemption.

        The object has no training state, because the run's own checkpoints have it. Raises BenchError after STARTS
        consecutive starts without a new checkpoint or cached evaluation.
        """
        idle = 0
        if self.run and self._newest() == self._before:
            idle = self.idle_starts + 1
        if idle >= STARTS:
            raise BenchError(
                f"no new checkpoint in {idle} starts: raise the time limit, or start a new run with a lower "
                "checkpoint_every"
            )
        run = self.run.name if self.run else ""
        job = Submitted(self.carry_out, self.launch, self.label, self.root, run, self.code, idle)
        return DelayedSubmission(job)

    def _newest(self) -> float:
        """Return when the run's checkpoint, or a cached evaluation of its base or teachers, was last written."""
        if not self.run:
            return 0.0
        cache = self.run.parent / "cache"
        made = [self.run / "checkpoint.safetensors", *cache.glob("evaluation-*.json")]
        times = [path.stat().st_mtime for path in made if path.exists()]
        return max(times, default=0.0)


def when_free(carry_out: CarryOut, work: dict[str, Any], root: Path) -> None:
    """Do a job's work in this process, waiting while another process holds its run. Raises what the work raises."""
    while True:
        try:
            return carry_out(work, root)
        except BusyError:
            time.sleep(BUSY_S)
