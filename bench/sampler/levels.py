"""The noise levels that a model was trained on, and the schedules through them that samplers visit.

This file does not import torch: schedules are made before anything is loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from bench.errors import unknown
from bench.sampler.schedule import TABLES, Schedule, make_schedule


class Levels(ABC):
    """How the sigmas of a schedule follow from its number of steps and the settings of a run."""

    shift: float | None
    """Timestep shift; None for a model that has none, or more than one."""
    table: str
    """The table of sigmas of the model's own pipeline."""
    tables: ClassVar[Collection[str]]
    """Names of the tables of sigmas that exist for such a model."""

    def schedule(self, steps: int, table: str | None = None, shift: float | None = None) -> Schedule:
        """The schedule of so many steps; None stands for the model's own table and shift.

        Raises UsageError for a table that such a model does not have, a shift where there is none, and for steps that
        are out of range.
        """
        if table and table not in self.tables:
            raise unknown("table of sigmas", table, self.tables)
        return self._schedule(steps, table or self.table, shift)

    @abstractmethod
    def _schedule(self, steps: int, table: str, shift: float | None) -> Schedule: ...

    @abstractmethod
    def __str__(self) -> str:
        """In a few words, for lists."""


@dataclass(frozen=True)
class FlowLevels(Levels):
    """Rectified flow: sigmas from 1 to 0 with a timestep shift (bench/sampler/schedule.py)."""

    shift: float | None = 1.0
    """Timestep shift of the model's scheduler."""
    shift_terminal: float | None = None
    """The last sigma before 0, to which a schedule is stretched; None: it is not."""
    table: str = "diffusers"
    tables: ClassVar[Collection[str]] = TABLES

    def _schedule(self, steps: int, table: str, shift: float | None) -> Schedule:
        return make_schedule(steps, shift or self.shift or 1.0, table, self.shift_terminal)

    def __str__(self) -> str:
        return f"shift {self.shift:g}"
