"""Repeated timing of functions on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

REPETITIONS = 5
SHORTEST_S = 0.02
"""Minimum duration of a repetition in seconds; shorter work is executed several times per repetition."""
Work = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Timing of a function on a device."""

    repetitions: list[float]
    """Seconds per execution, for each repetition."""
    peak_bytes: int = 0
    """Peak memory of the GPU during the repetitions; 0 on a CPU."""

    @property
    def seconds(self) -> float:
        """Median seconds per execution."""
        return median(self.repetitions)

    def record(self) -> dict:
        """The timing as plain data."""
        return {"seconds": self.seconds, "repetitions": self.repetitions, "peak_bytes": self.peak_bytes}


def measure(work: Work, device: torch.device, warmup: int = 2) -> Timing:
    """Time `work` over REPETITIONS repetitions, after `warmup` executions that are not timed.

    On a GPU the clock stops only once all queued kernels have finished, and the peak memory is recorded.
    """
    return measure_in_turns([work], device, warmup)[0]


def measure_in_turns(works: Sequence[Work], device: torch.device, warmup: int = 2) -> list[Timing]:
    """As `measure`, for several functions, taking turns so that slow phases of the machine affect all of them alike.

    The peak memory is that of the whole group.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(work: Work, times: int) -> float:
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
    times = []
    for work in works:
        once = max(seconds(work, 1), 1e-7)
        times.append(max(1, round(SHORTEST_S / once)))
    turns = []
    for _ in range(REPETITIONS):
        turns.append([seconds(work, n) for work, n in zip(works, times)])
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return [Timing(list(repetitions), peak) for repetitions in zip(*turns)]
