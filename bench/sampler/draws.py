"""Random numbers for a part of a batch that do not depend on how the batch was cut up.

Processes that share an update, and parts of a batch that are trained one after another, must together draw what one
process would draw for the whole batch: everybody draws the whole and keeps its own rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a batch of `whole`, counted in prompts."""

    start: int
    stop: int
    whole: int

    def part(self, start: int, stop: int) -> "Rows":
        """Of these rows, `start` to `stop`."""
        return Rows(self.start + start, self.start + stop, self.whole)

    def draw(self, make: Callable[[int], Tensor], count: int, axis: int = 0) -> Tensor:
        """`count` of the `make(whole batch)` entries along `axis`: these rows', several of them a prompt if need be."""
        each = count // (self.stop - self.start)
        return make(self.whole * each).narrow(axis, self.start * each, count)


class Draws(torch.Generator):
    """A generator that knows which rows it draws for; None: all of a batch."""

    rows: Rows | None = None
    _settled: Tensor | None = None
    """Its state when `draw` last used it; None where nobody asks whether it is used otherwise."""

    def settle(self) -> None:
        """Take the present state as one that `draw` left behind."""
        self._settled = self.get_state()

    @property
    def watched(self) -> bool:
        """Whether somebody asks how it was used."""
        return self._settled is not None

    @property
    def used_directly(self) -> bool:
        """Whether numbers were drawn past `draw`, which would be those of the first rows in every process."""
        return self._settled is not None and not torch.equal(self._settled, self.get_state())


def draw(make: Callable[[int], Tensor], count: int, generator: torch.Generator, axis: int = 0) -> Tensor:
    """`make(n)` draws for a batch of n from `generator` along `axis`; returns the `count` entries of its rows."""
    rows = getattr(generator, "rows", None)
    if rows is None:
        return make(count)
    honest = isinstance(generator, Draws) and generator.watched and not generator.used_directly
    drawn = rows.draw(make, count, axis)
    if honest:
        generator.settle()
    return drawn


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers [B, ...], float32, drawn on the CPU so that they are the same on every device."""
    return draw(lambda n: torch.randn(n, *shape[1:], generator=generator), shape[0], generator)
