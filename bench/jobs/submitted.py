"""A job as an executor has it: what submitit pickles, runs, and asks to checkpoint."""

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
"""A run that makes nothing new in so many starts in a row would never get further."""
BUSY_S = 5.0
CarryOut = Callable[[dict[str, Any], Path], None]
"""Does a job's work, given as plain data, in a results folder. A pickle holds its name alone: it must be importable."""


class Submitted(Checkpointable):
    """Does the work of one job of a launch; requeued, it goes on from what the store holds."""

    def __init__(
        self, carry_out: CarryOut, launch: Path, label: str, root: Path, run: str, code: str, idle_starts: int = 0
    ):
        """`launch` and `label` say which job; `run` is the run folder that it makes in `root`, or empty; `code` is the
        hash of the code that it was submitted with."""
        self.carry_out, self.launch, self.label, self.root = carry_out, launch, label, root
        self.run = root / run if run else None
        self.code, self.idle_starts = code, idle_starts
        self._before = 0.0

    def __call__(self) -> None:
        """Raises what the work raises; UsageError if the code is not the one that was submitted; SystemExit if it
        was stopped."""
        signal.signal(signal.SIGTERM, self._asked_to_end)
        try:
            if self._cancelled():  # before it could be told
                raise KeyboardInterrupt
            self._carry_out()
        except KeyboardInterrupt as stop:
            said = one_line(stop) if str(stop) else "interrupted"
            self._tell(STOPPED, said)
            print(said, file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            with suppress(OSError):  # the error itself counts
                self._tell(FAILED, explained(error))
            raise
        self._tell(DONE, "")

    def _carry_out(self) -> None:
        if (now := code_hash()) != self.code:
            raise UsageError(f"the code has changed since this job was submitted ({self.code} to {now}): submit again")
        if launched("SLURM_NTASKS", 1) > 1:
            # All GPUs stay visible: a process takes the one of its local rank.
            TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
        self._before = self._newest()
        with terminated_is_interrupted():
            when_free(self.carry_out, read_record(work_file(self.launch, self.label)), self.root)

    def _asked_to_end(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM is an interrupt, which a run takes after its update.

        Slurm sends one also before it preempts a job, which it will start again: there it counts only if a user has
        cancelled the job.
        """
        if "SLURM_JOB_ID" in os.environ and not self._cancelled():
            return
        interrupt = signal.getsignal(signal.SIGINT)
        (interrupt if callable(interrupt) else signal.default_int_handler)(signal.SIGINT, frame)

    def _cancelled(self) -> bool:
        return cancelled_file(self.launch, self.label).exists()

    def _tell(self, outcome: str, error: str) -> None:
        """Leave word of the end for `bench status` and for who waits, which unpickle nothing."""
        if os.environ.get("SLURM_PROCID", "0") != "0":
            return
        path = told_file(self.launch, self.label)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json_bytes({"outcome": outcome, "error": error}))

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before a time limit and on preemption. The loop's own checkpoints are what counts.

        Raises BenchError after too many starts that made nothing new.
        """
        idle = self.idle_starts + 1 if self.run and self._newest() == self._before else 0
        if idle >= STARTS:
            raise BenchError(f"nothing new in {idle} starts: allow more time, or lower checkpoint_every")
        run = self.run.name if self.run else ""
        return DelayedSubmission(Submitted(self.carry_out, self.launch, self.label, self.root, run, self.code, idle))

    def _newest(self) -> float:
        """When the run's checkpoint, or an evaluation of its base or teachers, was last written."""
        if not self.run:
            return 0.0
        made = [self.run / "checkpoint.safetensors", *(self.run.parent / "cache").glob("evaluation-*.json")]
        return max((path.stat().st_mtime for path in made if path.exists()), default=0.0)


def when_free(carry_out: CarryOut, work: dict[str, Any], root: Path) -> None:
    """Do a job's work in this process, waiting while another has its run in hand. Raises what it raises."""
    while True:
        try:
            return carry_out(work, root)
        except BusyError:
            time.sleep(BUSY_S)
