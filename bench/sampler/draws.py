"""Random numbers for part of a batch that do not depend on how the batch is split.

Processes that share an update, and parts of a batch that are trained one after another, must together draw the same
numbers as a single process for the full batch. Each therefore draws the full batch and keeps its own rows.
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
    """Rows `start` to `stop` (excluded) of a batch of `whole` rows, counted in prompts."""

    start: int
    stop: int
    whole: int

    def part(self, start: int, stop: int) -> Rows:
        """Rows `start` to `stop` of these rows."""
        return Rows(self.start + start, self.start + stop, self.whole)

    def draw(self, make: Callable[[int], Tensor], count: int, axis: int = 0) -> Tensor:
        """The `count` entries of these rows along `axis`, out of those that `make(n)` draws for the full batch.

        A row may have several entries, such as the rollouts of a prompt; `count` is over all rows.
        """
        each = count // (self.stop - self.start)
        entries = make(self.whole * each)
        return entries.narrow(axis, self.start * each, count)


class RowWatch(Protocol):
    """The part of RowGenerator that this file uses; importing the class would load torch."""

    @property
    def used_directly(self) -> bool:
        """Whether numbers were drawn without `draw`."""
        ...

    def settle(self) -> None:
        """Record the current state as that after the last use through `draw`."""
        ...


def draw(make: Callable[[int], Tensor], count: int, generator: torch.Generator, axis: int = 0) -> Tensor:
    """The `count` entries along `axis` that belong to the generator's rows.

    `make(n)` draws n entries from `generator`. A generator without rows draws `count` entries.
    """
    rows: Rows | None = getattr(generator, "rows", None)
    if rows is None:
        return make(count)
    watched = cast(RowWatch, generator) if getattr(generator, "watched", False) else None
    # Checked before drawing, which changes the state. A direct use must stay visible, so it is never settled again.
    correctly_used = watched is not None and not watched.used_directly
    drawn = rows.draw(make, count, axis)
    if watched is not None and correctly_used:
        watched.settle()
    return drawn


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal noise [B, ...] in float32, drawn on the CPU so that it is the same for every device."""
    return draw(lambda n: torch.randn(n, *shape[1:], generator=generator), shape[0], generator)
