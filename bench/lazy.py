"""torch, loaded when something of it is first used.

It takes seconds to load, and reading settings needs none of it: files on the way from a command to its spec (the
sampler's tables, contracts, methods) take it from here. Annotations need nothing loaded in such a file either:
`from __future__ import annotations`.
"""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


class _Later:
    """Stands for a module that is imported when an attribute of it is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = _Later("torch")


def without_gradients(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """`torch.no_grad` as a decorator, which torch's own would load it for."""

    @wraps(function)
    def inside(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with torch.no_grad():
            return function(*args, **kwargs)

    return inside
