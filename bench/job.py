"""A `bench` command as a job of an executor: what submitit pickles, runs, and asks to checkpoint."""

import os
import time
from pathlib import Path

from submitit.helpers import Checkpointable, DelayedSubmission, TorchDistributedEnvironment

from bench.errors import BenchError, BusyError, UsageError
from bench.provenance import code_hash

STARTS = 5
"""A run that makes nothing new in so many starts in a row would never get further."""
BUSY_S = 5.0


class Command(Checkpointable):
    """Carries out `bench ARGUMENTS`; requeued, it goes on from what the store holds."""

    def __init__(self, arguments: tuple[str, ...], run: Path | None, code: str, idle_starts: int = 0):
        """`run` is the folder of the run it makes, `code` the hash of the code it was submitted with."""
        self.arguments, self.run, self.code, self.idle_starts = arguments, run, code, idle_starts
        self._before = 0.0

    def __call__(self) -> None:
        """Raises what the command raises; UsageError if the code is not the one that was submitted."""
        if (now := code_hash()) != self.code:
            raise UsageError(f"the code has changed since this job was submitted ({self.code} to {now}): submit again")
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            # All GPUs stay visible: a process takes the one of its local rank.
            TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
        self._before = self._newest()
        carry_out(self.arguments)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before a time limit and on preemption. The loop's own checkpoints are what counts.

        Raises BenchError after too many starts that made nothing new.
        """
        idle = self.idle_starts + 1 if self.run and self._newest() == self._before else 0
        if idle >= STARTS:
            raise BenchError(f"nothing new in {idle} starts: allow more time, or lower checkpoint_every")
        return DelayedSubmission(Command(self.arguments, self.run, self.code, idle))

    def _newest(self) -> float:
        """When the run's checkpoint, or an evaluation of its base or teachers, was last written."""
        if not self.run:
            return 0.0
        made = [self.run / "checkpoint.safetensors", *(self.run.parent / "cache").glob("evaluation-*.json")]
        return max((path.stat().st_mtime for path in made if path.exists()), default=0.0)


def carry_out(arguments: tuple[str, ...]) -> None:
    """Run a `bench` command in this process, waiting while another has its run in hand. Raises what it raises."""
    from bench.cli import whole

    while True:
        try:
            code = whole()(list(arguments), standalone_mode=False)
        except BusyError:
            time.sleep(BUSY_S)
            continue
        if code:
            raise BenchError(f"bench {' '.join(arguments)} ended with exit code {code}")
        return
