"""Checks that a method gives the same update when it resumes, and when several processes share its run.

Processes share the prompts of every update. A method that draws prompts without `lab.prompts` gives every process all
prompts, and the summed gradient is N times too large. A method that draws random numbers without bench.sampler.draws
gives each process numbers that belong to other rows, and the update differs from that of a single process. Numbers from
a global generator also depend on what ran before, so that a resumed run differs from an uninterrupted one.
"""

import random
from collections.abc import Iterable

import numpy as np
import torch

from bench.api.lab import STUDENT, Lab
from bench.api.method import Method
from bench.errors import UsageError
from bench.hashing import tensors_hash
from bench.training.returned import state_of


class Watch:
    """Checks one update of a method: its shards of the prompts if several processes share the run, and its draws."""

    def __init__(self, lab: Lab, method: str):
        self.lab, self.method, self.shared = lab, method, lab.workers.count > 1
        self.before = _global_generators()
        if self.shared:
            lab.rows, lab.given = {}, []

    def check(self, tasks: Iterable[str]) -> None:
        """Raise UsageError if the method did not share the prompts of one of `tasks`, or as `check_draws` does."""
        count = self.lab.workers.count
        for task in tasks if self.shared else ():
            if task not in self.lab.rows:
                raise UsageError(
                    f"method {self.method!r} collects for task {task!r} without lab.prompts, which shares prompts "
                    f"among the {count} processes: its gradient would be {count} times too large. Draw prompts with "
                    "lab.prompts, or run one process"
                )
        self.check_draws()

    def check_draws(self) -> None:
        """Raise UsageError if random numbers came from a generator that other processes, or a resumed run, lack."""
        count = self.lab.workers.count
        for generator in self.lab.given if self.shared else ():
            if generator.used_directly:
                raise UsageError(
                    f"method {self.method!r} draws from lab.generator directly: each of the {count} processes would "
                    "use random numbers that belong to other rows. Draw batches with bench.sampler.draws (normal, "
                    "draw) and values shared by all prompts from lab.numpy_generator, or run one process"
                )
        if _global_generators() != self.before:
            raise UsageError(
                f"method {self.method!r} draws from a global random generator: a resumed run would differ from an "
                "uninterrupted one, and several processes from a single one. Draw from lab.generator"
            )


def _global_generators() -> tuple[bytes, ...]:
    """The states of torch's, NumPy's and Python's global generators."""
    legacy = np.random.get_state(legacy=False)["state"]
    return (
        torch.get_rng_state().numpy().tobytes(),
        *(state.numpy().tobytes() for state in _gpu_generators()),
        legacy["key"].tobytes() + str(legacy["pos"]).encode(),
        repr(random.getstate()).encode(),
    )


def _gpu_generators() -> list[torch.Tensor]:
    # Asking for the states would initialise CUDA; a method that has not used the GPU has not drawn on it.
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def check_equal(lab: Lab, method: Method, when: str) -> None:
    """Raise UsageError unless the student and the method's state are bit-identical in all processes of a run."""
    if lab.workers.count == 1:
        return
    held = {"students": lab.backbone.adapters.state(STUDENT), "values in the method's state": state_of(method)}
    for what, tensors in held.items():
        if len(set(lab.workers.gather(tensors_hash(tensors)))) > 1:
            raise UsageError(
                f"the {lab.workers.count} processes hold different {what} {when}: method {method.name!r} draws or "
                "decides something independently in each process. Draw from lab.generator or lab.numpy_generator, or "
                "run one process"
            )
