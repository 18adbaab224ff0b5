"""Timing a piece of work on a device, several times."""

from collections.abc import Callable
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
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(warmup):
        work()
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = perf_counter()
    work()
    wait()
    once = perf_counter() - started
    times = max(1, round(SHORTEST_S / max(once, 1e-7)))
    found = []
    for _ in range(REPETITIONS):
        started = perf_counter()
        for _ in range(times):
            work()
        wait()
        found.append((perf_counter() - started) / times)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Timing(found, peak)
