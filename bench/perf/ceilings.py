"""The two ceilings of a machine: how fast it copies memory, and how fast it multiplies matrices."""

import torch

from bench.perf.timing import Timing, measure

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


def copy_bandwidth(device: torch.device) -> tuple[float, Timing]:
    """Bytes read and written a second by copying a tensor far larger than any cache."""
    source = torch.zeros(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device)
    return 2 * source.nbytes / timing.seconds, timing


def matrix_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, Timing]:
    """Floating-point operations a second of a large square matrix product."""
    side = MATRIX_SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    timing = measure(lambda: a @ b, device)
    return 2 * side**3 / timing.seconds, timing
