"""The student's gradient as one flat vector, so that gradients of several tasks can be separated and combined."""

from collections.abc import Sequence

import torch
from torch import Tensor


def take(parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradients of all parameters as one vector [P] and clear them; parameters without a gradient give 0."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    for parameter in parameters:
        parameter.grad = None
    return flat


def give(parameters: Sequence[Tensor], flat_P: Tensor) -> None:
    """Set the parameters' gradients from one vector [P]. Raises ValueError if its length differs from theirs."""
    sizes = [parameter.numel() for parameter in parameters]
    if flat_P.shape != (sum(sizes),):
        raise ValueError(f"gradient has shape {list(flat_P.shape)}, expected [{sum(sizes)}]")
    for parameter, part in zip(parameters, flat_P.split(sizes)):
        parameter.grad = part.view_as(parameter).to(parameter.dtype).clone()
