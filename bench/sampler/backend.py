"""Which code does the elementwise work: Triton's kernels for tensors on a GPU, the torch reference everywhere else."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor



@cache
def triton_kernels() -> ModuleType | None:
    """The module of Triton kernels; None where Triton is not installed (CUDA builds of torch bring it on Linux)."""
    if find_spec("triton") is None:
        return None
    from bench.sampler import triton_step

    return triton_step


def on_gpu(x: Tensor) -> bool:
    """Whether the GPU's kernels can take tensors like this one; they compute in float32."""
    return x.is_cuda and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def fused(x: Tensor) -> ModuleType | None:
    """The Triton kernels for tensors like x; None: use torch."""
    return triton_kernels() if on_gpu(x) else None
