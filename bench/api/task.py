"""The contract of tasks: prompts, and a scorer of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")
"""The splits of every task's prompts."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with its stratum and what the scorer needs to know about it."""

    text: str
    stratum: str = ""
    """Group in which its scores are averaged (in GenEval, the tag)."""
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)
    """Plain data for the scorer, such as the expected objects."""


@dataclass(frozen=True)
class Scores:
    """A scorer's results for a batch of B images."""

    rewards: np.ndarray
    """Training rewards, float64 [B], from the task's `lowest_reward` to 1 (for a task with several rewards, their
    weighted sum). NaN means that the scorer failed, never that the image is bad."""
    metrics: dict[str, np.ndarray]
    """Evaluation metrics by name, each float64 [B]."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """How each image got its scores, as plain data; empty if a scorer gives no details."""
    separate: dict[str, np.ndarray] = field(default_factory=dict)
    """For a task with several rewards, each of them by its scorer's name, float64 [B], the task's own first."""


class Task(ABC):
    """A reward with its prompts. The backbone's world selects detectors and vocabulary from the task's table."""

    name: ClassVar[str]
    """Name under which it is registered."""
    version: str
    """Must change whenever a score could change, because stored scores are looked up by it."""
    headline: str
    """The metric that tables show."""
    lowest_reward: float = 0.0
    """Smallest possible training reward; below 0 only if the published reward is."""
    training_shares: ClassVar[dict[str, float]] = {}
    """stratum -> relative frequency among training prompts; 1 for strata that are not listed."""
    reward_weights: Mapping[str, float] = MappingProxyType({})
    """For a task with several rewards, scorer -> its weight in the weighted sum; empty for a single reward."""

    in_all: ClassVar[bool] = False
    """Whether `--tasks all` includes it. True only for the tasks of this benchmark's comparison, which every world
    supports: the meaning of `all` must not depend on the installed packages. Other tasks must be named."""
    splits: ClassVar[tuple[str, ...]] = SPLITS
    """The splits that it has prompts for. A task with test prompts only is for `bench eval`."""
    sources: ClassVar[dict[str, str]] = {}
    """key -> meaning of the scorer settings that a user may give (--set scorers.<task>.<key>=VALUE)."""
    sources_in: ClassVar[tuple[str, ...]] = ()
    """Worlds in which these settings have an effect; empty means every world."""

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        self.world, self.given = world, sources or {}

    @property
    def scorer_name(self) -> str:
        """Engine, version and weights of the scorer, recorded with every result."""
        return f"{self.world}-{self.name}-{self.version}"

    @property
    def highest_reward(self) -> float:
        """The largest possible training reward: 1, or the sum of the weights of several rewards."""
        return sum(self.reward_weights.values()) or 1.0

    @property
    def elsewhere(self) -> bool:
        """Whether `score` leaves the model's device alone and may be called in another thread. Default: it may not.

        True for a reader on the CPU or a server: it then scores while the model draws the next images.
        """
        return False

    @abstractmethod
    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of a split. The test and validation splits have one entry per image. No text is in two splits."""

    @abstractmethod
    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Scores of images [B, 3, H, W] in [0, 1]. Deterministic, and never raises because of a bad image."""

    @property
    def differentiable(self) -> bool:
        """Whether its reward has a gradient. Default: whether `differentiable_reward` is implemented."""
        return type(self).differentiable_reward is not Task.differentiable_reward

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """Rewards [B] of images [B, 3, H, W] in [0, 1], with gradients to the images.

        They equal the rewards of `score` where both are defined, but may leave its bounds where `score` clips. Raises
        UsageError if the reward has no gradient, which is the default.
        """
        raise UsageError(f"the reward of task {self.name!r} has no gradient")

    def check(self, prompt: Prompt) -> None:  # noqa: B027 - plain text has nothing to check
        """Raise UsageError, naming the field and the nearest valid value, for a prompt that this task cannot score.

        Called for every prompt from a user's file, before any network is loaded. Default: every prompt is accepted.
        """

    def check_beside(self, other: Task) -> None:  # noqa: B027 - most tasks have nothing in common
        """Raise UsageError if a run cannot have this task and another: settings on which both depend differ.

        Called for every two tasks of a run, before any network is loaded. Default: any two tasks.
        """

    def audit(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """Metrics of an independent scorer that no reward uses, each float64 [B], for `bench eval`.

        May be slow, because training never calls it. Default: none.
        """
        return {}

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Numbers as the task's authors report them, where these are no means over images: ratios of sums, times 100.

        `rows`: metric -> float64 [N] of all images of a model, NaN where an image has none; `prompts`: their prompts.
        Default: none.
        """
        return {}

    def sample(self, count: int, rng: np.random.Generator) -> list[Prompt]:
        """Draw training prompts: strata in proportion to `training_shares`, prompts uniformly within a stratum."""
        by_stratum = self._training_prompts
        names = [name for name in by_stratum if self.training_shares.get(name, 1) > 0]
        shares = np.cumsum([self.training_shares.get(name, 1) for name in names], dtype=np.float64)
        # Systematic sampling: evenly spaced points give every stratum its share to within one prompt.
        points = (rng.random() + np.arange(count)) / count
        drawn = np.searchsorted(shares / shares[-1], points, side="right")
        strata = [by_stratum[names[i]] for i in drawn]
        return [stratum[rng.integers(len(stratum))] for stratum in strata]

    @cached_property
    def _training_prompts(self) -> dict[str, list[Prompt]]:
        by_stratum: dict[str, list[Prompt]] = {}
        for prompt in self.prompts("train"):
            by_stratum.setdefault(prompt.stratum, []).append(prompt)
        return by_stratum

    def world_entry(self, table: dict[str, Any]) -> Any:
        """The table's entry for this world. Raises UsageError if the task does not support the world."""
        if self.world not in table:
            raise unknown(f"world for task {self.name}", self.world, table)
        return table[self.world]


class TaskAround(Task):
    """Base of wrappers that change the scoring of an inner task and leave everything else to it."""

    name = version = headline = ""  # replaced by those of the inner task

    def __init__(self, inner: Task):
        super().__init__(inner.world, inner.given)
        self.inner = inner
        for known in ("name", "version", "headline", "lowest_reward", "reward_weights", "training_shares"):
            setattr(self, known, getattr(inner, known))

    @property
    def scorer_name(self) -> str:
        """The inner task's scorer name."""
        return self.inner.scorer_name

    def prompts(self, split: str) -> list[Prompt]:
        """The inner task's prompts."""
        return self.inner.prompts(split)

    def check(self, prompt: Prompt) -> None:
        """Raise UsageError for a prompt that the inner task cannot score."""
        self.inner.check(prompt)

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The inner task's published numbers."""
        return self.inner.published(prompts, rows)
