"""torch, imported when one of its attributes is first used.

Importing torch takes seconds, and commands that only read settings or records do not need it. Files that such commands
import (sigma tables, plug-in contracts, methods) take `torch` from here. They also need
`from __future__ import annotations`, so that their annotations do not trigger the import.
"""

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


class _Later:
    """A stand-in for a module that is imported when one of its attributes is first read."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = _Later("torch")


def without_gradients(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Decorate a function to run under `torch.no_grad`; torch's own decorator would import torch at definition."""

    @wraps(function)
    def inside(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with torch.no_grad():
            return function(*args, **kwargs)

    return inside
