"""Choice of the elementwise implementation: Triton kernels for tensors on a GPU, otherwise the torch reference."""

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
    """The module of Triton kernels; None if Triton is not installed (it comes with CUDA builds of torch on Linux)."""
    if find_spec("triton") is None:
        return None
    from bench.sampler import triton_step

    return triton_step


def on_gpu(x: Tensor) -> bool:
    """Whether the Triton kernels support a tensor's device and type. They compute in float32, hence no float64."""
    return x.is_cuda and x.dtype in (torch.float32, torch.bfloat16, torch.float16)


def fused(x: Tensor) -> ModuleType | None:
    """The Triton kernels for tensors of x's device and type; None means that torch must be used."""
    return triton_kernels() if on_gpu(x) else None
