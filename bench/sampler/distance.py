"""Squared distance, the building block of losses on velocities and of Gaussian densities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.lazy import torch
from bench.sampler.backend import fused

if TYPE_CHECKING:
    from torch import Tensor


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Sum over each sample's elements of (a - b)^2, [B], in float32 or wider, for a and b [B, ...].

    Computed in one pass on a GPU if b needs no gradient.
    """
    kernels = fused(a)
    if kernels and not b.requires_grad:
        return kernels.fused_match(a, b, a[0].numel())
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) - b.to(dtype)).flatten(1).square().sum(1)
