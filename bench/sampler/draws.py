"""Random numbers for a part of a batch that do not depend on how the batch was cut up.

Processes that share an update, and parts of a batch that are trained one after another, must together draw what one
process would draw for the whole batch: everybody draws the whole and keeps its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a batch of `whole`, counted in prompts."""

    start: int
    stop: int
    whole: int

    def part(self, start: int, stop: int) -> Rows:
        """Of these rows, `start` to `stop`."""
        return Rows(self.start + start, self.start + stop, self.whole)

    def draw(self, make: Callable[[int], Tensor], count: int, axis: int = 0) -> Tensor:
        """`count` of the `make(whole batch)` entries along `axis`: these rows', several of them a prompt if need be."""
        each = count // (self.stop - self.start)
        return make(self.whole * each).narrow(axis, self.start * each, count)


class RowWatch(Protocol):
    """What of a generator that somebody watches is used here (bench/sampler/generator.py)."""

    @property
    def used_directly(self) -> bool: ...

    def settle(self) -> None: ...


def draw(make: Callable[[int], Tensor], count: int, generator: torch.Generator, axis: int = 0) -> Tensor:
    """`make(n)` draws for a batch of n from `generator` along `axis`; returns the `count` entries of its rows."""
    rows: Rows | None = getattr(generator, "rows", None)
    if rows is None:
        return make(count)
    watched = cast(RowWatch, generator) if getattr(generator, "watched", False) else None
    honest = watched is not None and not watched.used_directly
    drawn = rows.draw(make, count, axis)
    if watched is not None and honest:
        watched.settle()
    return drawn


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers [B, ...], float32, drawn on the CPU so that they are the same on every device."""
    return draw(lambda n: torch.randn(n, *shape[1:], generator=generator), shape[0], generator)
