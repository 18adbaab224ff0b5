"""What a task is: prompts, and a scorer of pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prompt:
    """A prompt, what its scorer needs to know, and the stratum (GenEval: the tag) it is averaged in."""

    text: str
    stratum: str = ""
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Scores:
    """What a scorer says of a batch of B pictures."""

    rewards: np.ndarray
    """Training reward, float64 [B], from the task's `lowest_reward` to 1; NaN marks a scorer failure, never a bad
    picture."""
    metrics: dict[str, np.ndarray]
    """Evaluation metrics by name, each float64 [B]."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """What led to each picture's scores, as plain data; empty where a scorer has nothing to tell."""


class Task(ABC):
    """One reward. Built with the backbone's world, which picks detectors and vocabulary from the task's own table."""

    name: ClassVar[str]
    version: str
    """Changes whenever a score could."""
    headline: str
    """The metric that tables show."""
    lowest_reward: float = 0.0
    """Smallest training reward; below 0 only where the published reward is."""
    training_shares: ClassVar[dict[str, float]] = {}
    """Relative share of strata among training prompts; 1 where nothing is said."""

    in_all: ClassVar[bool] = False
    """Whether --tasks all names it. True for the tasks of this benchmark's own comparison, which every world serves:
    what `all` means must not depend on the packages that are installed. Any other task is named."""
    sources: ClassVar[dict[str, str]] = {}
    """What a user may say of the scorer (--set scorers.<task>.<key>=VALUE): key -> meaning."""
    sources_in: ClassVar[tuple[str, ...]] = ()
    """Worlds whose pictures those sources serve; elsewhere the task has all it needs. Empty: every world."""

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        self.world, self.given = world, sources or {}

    @property
    def scorer_name(self) -> str:
        """Engine, version and weights of the scorer; part of every result's provenance."""
        return f"{self.world}-{self.name}-{self.version}"

    @abstractmethod
    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of a split. Test and validation list one entry a picture; splits share no text."""

    @abstractmethod
    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Score pictures [B, 3, H, W] in [0, 1]. Deterministic; never raises on an ugly picture."""

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """Reward [B] of pictures [B, 3, H, W] in [0, 1] through which gradients flow; equal to `score`'s rewards where
        both are defined. Raises UsageError for a task whose reward has no gradient: the default."""
        raise UsageError(f"the reward of task {self.name!r} has no gradient")

    def check(self, prompt: Prompt) -> None:  # noqa: B027 - plain text has nothing to check
        """Raise UsageError, naming the field and the nearest valid value, for a prompt that this task cannot score.

        Called for every prompt that comes from outside, before any network is loaded. Default: nothing is refused.
        """

    def audit(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """Metrics of an independent scorer that no reward uses, each float64 [B]; `bench eval` shows them.

        May be slow: training never calls it. Default: none.
        """
        return {}

    def sample(self, count: int, rng: np.random.Generator) -> list[Prompt]:
        """Draw training prompts: strata in the task's shares, prompts uniform within."""
        by_stratum = self._training_prompts
        names = [name for name in by_stratum if self.training_shares.get(name, 1) > 0]
        shares = np.cumsum([self.training_shares.get(name, 1) for name in names], dtype=np.float64)
        # One draw for all: evenly spaced points give every stratum its share to within one prompt.
        points = (rng.random() + np.arange(count)) / count
        drawn = np.searchsorted(shares / shares[-1], points, side="right")
        return [by_stratum[names[i]][rng.integers(len(by_stratum[names[i]]))] for i in drawn]

    @cached_property
    def _training_prompts(self) -> dict[str, list[Prompt]]:
        by_stratum: dict[str, list[Prompt]] = {}
        for prompt in self.prompts("train"):
            by_stratum.setdefault(prompt.stratum, []).append(prompt)
        return by_stratum

    def world_entry(self, table: dict[str, Any]) -> Any:
        """The table's entry for this world; raises UsageError if the task does not serve it."""
        if self.world not in table:
            raise unknown(f"world for task {self.name}", self.world, table)
        return table[self.world]


class TaskAround(Task):
    """A task with its scoring changed; everything else is the inner task's."""

    name = version = headline = ""  # the inner task's, once there is one

    def __init__(self, inner: Task):
        super().__init__(inner.world, inner.given)
        self.inner = inner
        for known in ("name", "version", "headline", "lowest_reward", "training_shares"):
            setattr(self, known, getattr(inner, known))

    @property
    def scorer_name(self) -> str:
        return self.inner.scorer_name

    def prompts(self, split: str) -> list[Prompt]:
        return self.inner.prompts(split)

    def check(self, prompt: Prompt) -> None:
        self.inner.check(prompt)
