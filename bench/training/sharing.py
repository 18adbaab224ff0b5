"""What a method owes to the other processes of its run, checked while it collects and computes losses.

Processes share every update's prompts. A method that draws prompts without `lab.prompts` gives all prompts to each of
them, and their summed gradient is N times too large; one that draws random numbers past bench.sampler.draws gives each
process the numbers of other rows, and the update is not that of one process.
"""

import random
from collections.abc import Iterable

import numpy as np
import torch

from bench.api.lab import STUDENT, Lab
from bench.errors import UsageError
from bench.hashing import tensors_hash


class Watch:
    """One update under watch; does nothing where one process has all prompts."""

    def __init__(self, lab: Lab, method: str):
        self.lab, self.method, self.needed = lab, method, lab.workers.count > 1
        if self.needed:
            lab.rows, lab.given = {}, []
            self.before = _global_generators()

    def check(self, tasks: Iterable[str]) -> None:
        """Raise UsageError if the method forgot the other processes until now, in any of its `tasks`."""
        if not self.needed:
            return
        count = self.lab.workers.count
        for task in tasks:
            if task not in self.lab.rows:
                raise UsageError(
                    f"method {self.method!r} collects for task {task!r} without lab.prompts, which shares prompts "
                    f"among the {count} processes: its gradient would be {count} times too large. Draw prompts with "
                    "lab.prompts, or run one process"
                )
        self.check_draws()

    def check_draws(self) -> None:
        """Raise UsageError if numbers were drawn that another process cannot have drawn too, or has drawn as well."""
        if not self.needed:
            return
        count = self.lab.workers.count
        for generator in self.lab.given:
            if generator.used_directly:
                raise UsageError(
                    f"method {self.method!r} draws from lab.generator by itself: each of the {count} processes would "
                    "draw the numbers of other rows. Draw batches with bench.sampler.draws (normal, draw), and what "
                    "all prompts share from lab.numpy_generator, or run one process"
                )
        if _global_generators() != self.before:
            raise UsageError(
                f"method {self.method!r} draws from a global random generator: the {count} processes would not give "
                "the update of one. Draw from lab.generator, or run one process"
            )


def _global_generators() -> tuple[bytes, ...]:
    """The states of torch's, numpy's and Python's own generators."""
    legacy = np.random.get_state(legacy=False)["state"]
    return (
        torch.get_rng_state().numpy().tobytes(),
        *(state.numpy().tobytes() for state in _gpu_generators()),
        legacy["key"].tobytes() + str(legacy["pos"]).encode(),
        repr(random.getstate()).encode(),
    )


def _gpu_generators() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def check_equal(lab: Lab, method: str, when: str) -> None:
    """Raise UsageError if the processes of a run do not hold the same student, to the bit."""
    if lab.workers.count == 1:
        return
    held = lab.workers.gather(tensors_hash(lab.backbone.adapters.state(STUDENT)))
    if len(set(held)) > 1:
        raise UsageError(
            f"the {lab.workers.count} processes hold different students {when}: method {method!r} draws or decides "
            "something in each of them by itself. Draw from lab.generator or lab.numpy_generator, or run one process"
        )
