"""A `bench` command as a job of an executor: what submitit pickles, runs, and asks to checkpoint."""

import os
import time
from pathlib import Path

from submitit.helpers import Checkpointable, DelayedSubmission, TorchDistributedEnvironment

from bench.errors import BenchError, UsageError
from bench.provenance import code_hash

GRACE_S = 600
"""A run that was told to stop after longer than this without a new checkpoint would never get further."""


class Command(Checkpointable):
    """Carries out `bench ARGUMENTS`; requeued, it goes on from what the store holds."""

    def __init__(self, arguments: tuple[str, ...], run: Path | None, code: str):
        """`run` is the folder of the run it makes, `code` the hash of the code it was submitted with."""
        self.arguments, self.run, self.code = arguments, run, code
        self._began, self._before = 0.0, 0.0

    def __call__(self) -> None:
        """Raises what the command raises; UsageError if the code is not the one that was submitted."""
        if (now := code_hash()) != self.code:
            raise UsageError(f"the code has changed since this job was submitted ({self.code} to {now}): submit again")
        if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
            # All GPUs stay visible: a process takes the one of its local rank.
            TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
        self._began, self._before = time.monotonic(), self._checkpointed()
        carry_out(self.arguments)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before a time limit and on preemption. The loop's own checkpoints are what counts.

        Raises BenchError if there has been none in a long while.
        """
        spent = time.monotonic() - self._began
        if self.run and spent > GRACE_S and self._checkpointed() == self._before:
            raise BenchError(f"no checkpoint in {spent / 60:.0f} minutes: allow more time, or lower checkpoint_every")
        return DelayedSubmission(Command(self.arguments, self.run, self.code))

    def _checkpointed(self) -> float:
        path = self.run / "checkpoint.safetensors" if self.run else None
        return path.stat().st_mtime if path and path.exists() else 0.0


def carry_out(arguments: tuple[str, ...]) -> None:
    """Run a `bench` command in this process. Raises BenchError for its failure."""
    from bench.cli import whole

    if code := whole()(list(arguments), standalone_mode=False):
        raise BenchError(f"bench {' '.join(arguments)} ended with exit code {code}")
