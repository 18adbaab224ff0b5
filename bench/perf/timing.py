"""Timing a piece of work on a device, several times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

REPETITIONS = 5
SHORTEST_S = 0.02
"""A repetition runs the work as often as it takes to last this long."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one execution in every repetition, and the memory that the device needed at most."""

    repetitions: list[float]
    peak_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Median."""
        return median(self.repetitions)

    def record(self) -> dict:
        return {"seconds": self.seconds, "repetitions": self.repetitions, "peak_bytes": self.peak_bytes}


def measure(work: Callable[[], object], device: torch.device, warmup: int = 2) -> Timing:
    """Execute `work` again and again. On a GPU the clock waits for it, and its peak memory is recorded."""
    return measure_in_turns([work], device, warmup)[0]


def measure_in_turns(works: Sequence[Callable[[], object]], device: torch.device, warmup: int = 2) -> list[Timing]:
    """As `measure`, each repetition of all works before the next: a machine's slow minutes fall on all of them alike.

    The peak memory is that of the whole group.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(work: Callable[[], object], times: int) -> float:
        started = perf_counter()
        for _ in range(times):
            work()
        wait()
        return (perf_counter() - started) / times

    for work in works:
        for _ in range(warmup):
            work()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [max(1, round(SHORTEST_S / max(seconds(work, 1), 1e-7))) for work in works]
    turns = [[seconds(work, n) for work, n in zip(works, times)] for _ in range(REPETITIONS)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return [Timing(list(repetitions), peak) for repetitions in zip(*turns)]
