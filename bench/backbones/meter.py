"""Compute accounting in NFE (number of function evaluations), the unit of budgets and comparisons.

A forward pass of one latent counts 1 and a backward pass counts BACKWARD; guidance doubles both, since it calls the
network twice. Counting a backward pass as 2 is a convention (the cost of training all weights), not a measurement: for
LoRA adapters on frozen weights it takes about 1.1 forward passes of SD3.5-Medium. What a run will really compute is
counted from the model's shapes (bench/prediction/cost.py).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from bench.system.workers import Workers

BACKWARD = 2
"""NFE of a backward pass, by convention. It must never change, because stored records are in this unit."""


@dataclass(frozen=True)
class Passes:
    """Number of passes through the network, counted per latent; guidance makes two passes per latent."""

    forward: int = 0
    """Forward passes without gradients."""
    trained: int = 0
    """Forward passes with gradients, each followed by its backward pass."""

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.trained + other.trained)

    def __mul__(self, times: int) -> "Passes":
        return Passes(self.forward * times, self.trained * times)

    @property
    def nfe(self) -> int:
        """These passes in NFE."""
        return self.forward + self.trained * (1 + BACKWARD)


class Meter:
    """Counts NFE and seconds per purpose. Stored records keep the older key `evaluations` for NFE."""

    def __init__(self) -> None:
        self.nfe: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        """Backward passes, which `nfe` counts as BACKWARD each, so that another weight can be given to them."""
        self._knows_backward = True
        self.seconds: dict[str, float] = {}
        self.passes = Passes()
        """All passes of this process, for any purpose; not stored in any record."""
        self._purpose = "idle"
        self._whole = False
        self._since = perf_counter()

    def count(self, batch: int, backward: bool) -> None:
        """Record one network call on `batch` latents."""
        self.nfe[self._purpose] += batch * (1 + BACKWARD * backward)
        if backward:
            self.backward[self._purpose] += batch
        self.passes += Passes(trained=batch) if backward else Passes(forward=batch)

    @contextmanager
    def purpose(self, name: str, whole: bool = False) -> Iterator[None]:
        """Charge compute and time inside the block to `name`; nested blocks charge only the innermost name.

        With `whole`, nested blocks change nothing.
        """
        if self._whole:
            yield
            return
        outer, self._whole = self._switch(name), whole
        try:
            yield
        finally:
            self._whole = False
            self._switch(outer)

    def _switch(self, name: str) -> str:
        # Seconds are added only when a purpose ends; `settle` therefore switches to the same purpose again.
        now = perf_counter()
        before = self.seconds.get(self._purpose, 0)
        self.seconds[self._purpose] = before + (now - self._since)
        outer, self._purpose, self._since = self._purpose, name, now
        return outer

    def settle(self) -> None:
        """Bring the clock of the current purpose up to date."""
        self._switch(self._purpose)

    def state(self) -> dict:
        """The counts and seconds so far, for a checkpoint or a record."""
        self.settle()
        known = {"backward": dict(self.backward)} if self._knows_backward else {}
        return {"evaluations": dict(self.nfe), "seconds": dict(self.seconds)} | known

    def whole(self, workers: Workers) -> dict:
        """The NFE of all processes and the seconds of the main one."""
        states = workers.gather(self.state())
        parts = [part for part in ("evaluations", "backward") if part in states[0]]
        counts = {part: dict(sum((Counter(state[part]) for state in states), Counter())) for part in parts}
        return counts | {"seconds": states[0]["seconds"]}

    def spent(self, workers: Workers) -> dict:
        """`whole` as rows of metrics have it: NFE and seconds."""
        return {part: found for part, found in self.whole(workers).items() if part != "backward"}

    def load(self, state: dict) -> None:
        """Restore a `state` and restart the clock now."""
        self.nfe = Counter(state["evaluations"])
        # A checkpoint of before has none, and then the passes since it was made would be taken for all.
        self._knows_backward = "backward" in state
        self.backward = Counter(state.get("backward", {}))
        self.seconds = dict(state["seconds"])
        self._since = perf_counter()
