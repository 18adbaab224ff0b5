"""Compute accounting in model evaluations: forward 1, backward 2, per latent; guidance doubles by evaluating twice."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from bench.workers import Workers

BACKWARD = 2


class Meter:
    """Counts evaluations and seconds under the purpose that is current ('training' unless said otherwise)."""

    def __init__(self) -> None:
        self.evaluations: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._purpose = "idle"
        self._since = perf_counter()

    def count(self, batch: int, backward: bool) -> None:
        """Record one network call on `batch` latents."""
        self.evaluations[self._purpose] += batch * (1 + BACKWARD * backward)

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
        self.seconds[self._purpose] += now - self._since
        outer, self._purpose, self._since = self._purpose, name, now
        return outer

    def settle(self) -> None:
        """Bring the clock of the current purpose up to date."""
        self._switch(self._purpose)

    def state(self) -> dict:
        self.settle()
        return {"evaluations": dict(self.evaluations), "seconds": dict(self.seconds)}

    def whole(self, workers: Workers) -> dict:
        """Evaluations of all processes, and seconds of the main one."""
        states = workers.gather(self.state())
        counts = sum((Counter(state["evaluations"]) for state in states), Counter())
        return {"evaluations": dict(counts), "seconds": states[0]["seconds"]}

    def load(self, state: dict) -> None:
        self.evaluations = Counter(state["evaluations"])
        self.seconds = Counter(state["seconds"])
        self._since = perf_counter()
