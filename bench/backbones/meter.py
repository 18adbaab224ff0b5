"""Compute accounting in NFE (number of function evaluations), the unit of budgets and comparisons.

A forward pass of one latent counts 1, a backward pass BACKWARD, and guidance doubles by evaluating twice. That a
backward pass counts 2 is a convention (it is what training every weight costs), not a measurement: to LoRA adapters on
frozen weights it takes about 1.1 forward passes of SD3.5-Medium. What a run will really compute is counted from the
model's shapes (bench/prediction/cost.py).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from bench.system.workers import Workers

BACKWARD = 2
"""A backward pass in the unit of budgets, by convention. Stored records are in it: it never changes."""


@dataclass(frozen=True)
class Passes:
    """Passes of single latents through the model; with guidance a latent makes two."""

    forward: int = 0
    """Without gradients."""
    trained: int = 0
    """With gradients, each followed by its backward pass."""

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.trained + other.trained)

    def __mul__(self, times: int) -> "Passes":
        return Passes(self.forward * times, self.trained * times)

    @property
    def nfe(self) -> int:
        """In the unit of budgets."""
        return self.forward + self.trained * (1 + BACKWARD)


class Meter:
    """Counts NFE and seconds under the current purpose. Records call the counts `evaluations`, and always have."""

    def __init__(self) -> None:
        self.nfe: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.passes = Passes()
        """Of this process, whatever they were for; no record keeps them."""
        self._purpose = "idle"
        self._since = perf_counter()

    def count(self, batch: int, backward: bool) -> None:
        """Record one network call on `batch` latents."""
        self.nfe[self._purpose] += batch * (1 + BACKWARD * backward)
        self.passes += Passes(trained=batch) if backward else Passes(forward=batch)

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Charge what happens inside to `name`; nesting charges the innermost only."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> str:
        now = perf_counter()
        self.seconds[self._purpose] = self.seconds.get(self._purpose, 0) + (now - self._since)
        outer, self._purpose, self._since = self._purpose, name, now
        return outer

    def settle(self) -> None:
        """Bring the clock of the current purpose up to date."""
        self._switch(self._purpose)

    def state(self) -> dict:
        self.settle()
        return {"evaluations": dict(self.nfe), "seconds": dict(self.seconds)}

    def whole(self, workers: Workers) -> dict:
        """The NFE of all processes and the seconds of the main one."""
        states = workers.gather(self.state())
        counts = sum((Counter(state["evaluations"]) for state in states), Counter())
        return {"evaluations": dict(counts), "seconds": states[0]["seconds"]}

    def load(self, state: dict) -> None:
        self.nfe = Counter(state["evaluations"])
        self.seconds = dict(state["seconds"])
        self._since = perf_counter()
