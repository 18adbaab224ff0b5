"""The contract of an RL objective: how it samples images, and the loss that it minimises given their advantages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bench.api.lab import Lab
from bench.api.method import Options
from bench.api.task import Scores
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.sampler.rollout import Sampler, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Samples:
    """The B = prompts x group images of one task, in prompt order."""

    trajectory: Trajectory
    conditioning: Conditioning
    scores: Callable[[], Scores]
    """Waits for the images' scores: some scorers work while the next task is sampled."""
    advantages: Tensor = field(init=False)
    """[B]; filled in once the rewards of all tasks are known."""


class Engine(ABC):
    """One RL objective."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    source: ClassVar[str]
    """Paper and equation."""
    adapters: ClassVar[tuple[str, ...]] = ()
    """Adapters that it keeps besides the student (see Method.adapters)."""

    def __init__(self, options: Any):
        self.options = options

    def check(self, sampler: Sampler, groups: int) -> None:  # noqa: B027 - an engine may take any sampler
        """Raise UsageError for a sampler or a number of prompt groups that this objective cannot train with."""

    @abstractmethod
    def sample(self, lab: Lab, task: str, conditioning: Conditioning) -> Trajectory:
        """Draw one trajectory per entry of `conditioning`, without gradients."""

    @abstractmethod
    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """Scalar pieces of the loss; the KL penalty pulls towards the adapter `reference` (None: the base)."""

    @abstractmethod
    def passes(self, sampler: Sampler) -> Passes:
        """Network passes per image and update, for one guidance branch."""

    @abstractmethod
    def kept(self, sampler: Sampler) -> int:
        """Latents held in memory per image while the loss is computed."""

    def after_update(self, lab: Lab) -> None:  # noqa: B027 - most engines keep nothing
        """Called after the optimiser step, without gradients."""
