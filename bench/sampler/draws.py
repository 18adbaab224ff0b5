"""Random numbers for part of a batch that do not depend on how the batch is split.

Processes that share an update, and parts of a batch that are trained one after another, must together draw the same
numbers as a single process for the full batch. Normal noise is a function of the row, so only the rows needed are
computed; for other distributions the full batch is drawn and all but the own rows are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from bench.hashing import seed_of
from bench.lazy import torch
from bench.sampler.noise import noise

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

    def entries(self, count: int) -> range:
        """The positions of these rows' `count` entries in the full batch.

        A row may have several entries, such as the rollouts of a prompt; `count` is over all rows. Raises ValueError
        unless all rows have equally many.
        """
        each, left = divmod(count, self.stop - self.start)
        if left or not each:
            raise ValueError(f"{count} entries are not equally many for each of {self.stop - self.start} prompts")
        return range(self.start * each, self.start * each + count)

    def draw(self, make: Callable[[int], Tensor], count: int, axis: int = 0) -> Tensor:
        """The `count` entries of these rows along `axis`, out of those that `make(n)` draws for the full batch."""
        entries = self.entries(count)
        each = count // (self.stop - self.start)
        return make(self.whole * each).narrow(axis, entries.start, count)


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
    rows = rows_of(generator)
    with proper_use(generator):
        return make(count) if rows is None else rows.draw(make, count, axis)


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Standard normal noise [B, ...] in float32 on `device`, for the B entries that belong to the generator's rows.

    Only a key is drawn from the generator, so the noise neither depends on the device, except for its last bit, nor
    waits for it (bench/sampler/noise.py).
    """
    rows = rows_of(generator)
    with proper_use(generator):
        drawn = int(torch.randint(2**63 - 1, (), generator=generator))
    # The number drawn tells this call from others of the generator, but torch uses 32 bits of a seed only.
    key = seed_of(generator.initial_seed(), drawn)
    entries = range(shape[0]) if rows is None else rows.entries(shape[0])
    return noise(key, entries, tuple(shape[1:]), device)


def rows_of(generator: torch.Generator) -> Rows | None:
    """The rows that a generator draws for; None means all rows of the batch."""
    return getattr(generator, "rows", None)


@contextmanager
def proper_use(generator: torch.Generator) -> Iterator[None]:
    """Within the context, drawing from a watched generator is not a direct use of it."""
    watched = cast(RowWatch, generator) if getattr(generator, "watched", False) else None
    # Checked before drawing, which changes the state. A direct use must stay visible, so it is never settled again.
    correctly_used = watched is not None and not watched.used_directly
    yield
    if watched is not None and correctly_used:
        watched.settle()
