"""Checks of what a method's hooks return, so that the mistake of a plug-in is one line that names the hook."""

from typing import Any

import torch
from torch import Tensor

from bench.api.method import Method
from bench.errors import BenchError


def piece_of(method: Method, piece: Any) -> Tensor:
    """A piece of the loss: a tensor with one element that has a gradient. Raises BenchError for anything else."""
    if not isinstance(piece, Tensor) or piece.numel() != 1:
        raise _wrong(method, "losses", f"yielded {_shown(piece)}: yield scalar tensors, such as a mean over the batch")
    if not piece.requires_grad:
        raise _wrong(method, "losses", "yielded a loss without a gradient: compute it from the student's velocity")
    return piece


def combination_of(method: Method, combined: Any, like: Tensor) -> Tensor:
    """The combined gradient, of the shape of each task's. Raises BenchError for anything else."""
    if not isinstance(combined, Tensor) or combined.shape != like.shape:
        expected = f"a tensor of shape {list(like.shape)}, as each task's gradient"
        raise _wrong(method, "combine", f"returned {_shown(combined)}, not {expected}")
    return combined


def state_of(method: Method) -> dict[str, Tensor]:
    """What a method keeps between updates, as tensors by name. Raises BenchError for anything else."""
    state = method.state()
    if not isinstance(state, dict):
        raise _wrong(method, "state", f"returned {_shown(state)}, not a dict of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _wrong(method, "state", f"returned {_shown(value)} for {name!r}: checkpoints hold tensors by name")
    return state


def _wrong(method: Method, hook: str, what: str) -> BenchError:
    return BenchError(f"method {method.name!r}: {hook} {what}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{value!r:.40} ({type(value).__name__})"
