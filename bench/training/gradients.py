"""The student's gradient as one flat vector: taken apart by task, and put back combined."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take(parameters: Sequence[Tensor]) -> Tensor:
    """The gradients [P] of all parameters, which are cleared; 0 where nothing was backpropagated."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return flat


def give(parameters: Sequence[Tensor], flat_P: Tensor) -> None:
    """Make a vector the parameters' gradients. Raises ValueError for one of another length."""
    if flat_P.shape != (sum(p.numel() for p in parameters),):
        raise ValueError(f"a gradient of the shape {list(flat_P.shape)}")
    for parameter, part in zip(parameters, flat_P.split([p.numel() for p in parameters])):
        parameter.grad = part.view_as(parameter).to(parameter.dtype).clone()
