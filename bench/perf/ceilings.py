"""The two ceilings of a machine: its rates of copying memory and of multiplying matrices."""

import torch

from bench.perf.timing import Timing, measure

# Far larger than any cache, so that memory and not a cache is measured.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Size of the tensor that is copied, in bytes, by type of device."""
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices that are multiplied, by type of device."""


def copy_bandwidth(device: torch.device) -> tuple[float, Timing]:
    """Bytes read plus bytes written per second when copying a large tensor, and the timing of one copy."""
    elements = COPY_BYTES[device.type] // 4  # float32
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    timing = measure(lambda: target.copy_(source), device)
    return 2 * source.nbytes / timing.seconds, timing


def matrix_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, Timing]:
    """Floating-point operations per second of a large square matrix product, and the timing of one product."""
    side = MATRIX_SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    timing = measure(lambda: a @ b, device)
    return 2 * side**3 / timing.seconds, timing
