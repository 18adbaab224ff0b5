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
from methods.rl.inner_updates import check_inner_updates

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What one update samples for one task."""

    groups: int
    """Prompts."""
    group_size: int
    """Images per prompt."""
    passes: int = 1
    """Passes through the network per velocity of the student (Sampler.passes)."""

    @property
    def pictures(self) -> int:
        """Number of images."""
        return self.groups * self.group_size


@dataclass
class Samples:
    """The B = prompts x group images of one task, in prompt order."""

    trajectory: Trajectory
    conditioning: Conditioning
    group_size: int
    """Images per prompt."""
    scores: Callable[[], Scores]
    """Waits for the images' scores: some scorers work while the next task is sampled."""
    advantages: Tensor = field(init=False)
    """[B]; filled in once the rewards of all tasks are known."""


class Engine(ABC):
    """One RL objective. Its Options have `kl`, `inner_updates` and `chunk`."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    source: ClassVar[str]
    """Paper and equation."""
    adapters: ClassVar[tuple[str, ...]] = ()
    """Adapters that it keeps besides the student (see Method.adapters)."""

    penalises_distance: ClassVar[bool] = True
    """Whether the reference has no other effect than a penalty of weight `kl` on the distance to it."""

    trained_guidance: ClassVar[float | None] = None
    """Guidance scale of the student with gradients, and of the old policy; None: that of the rollouts."""

    def __init__(self, options: Any):
        self.options = options

    def check(self, sampler: Sampler, batch: Batch) -> None:
        """Raise UsageError for a sampler or a batch that this objective cannot train with."""
        check_inner_updates(self.name, batch.groups, self.options.inner_updates)

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing beside the others -> the reason. Changing one with --set is an error."""
        return {}

    @abstractmethod
    def sample(self, lab: Lab, task: str, conditioning: Conditioning, group_size: int) -> Trajectory:
        """Draw one trajectory per entry of `conditioning`, without gradients; groups of neighbours have one prompt."""

    @abstractmethod
    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """Scalar pieces of the loss; the KL penalty pulls towards the adapter `reference` (None: the base)."""

    @abstractmethod
    def passes(self, sampler: Sampler, batch: Batch) -> Passes:
        """Network passes of one task in one update."""

    @abstractmethod
    def kept(self, sampler: Sampler) -> int:
        """Latents held in memory per image while the loss is computed."""

    def trained_at_once(self, batch: Batch) -> int:
        """Most images per forward with gradients; an inner update has one share of the images."""
        return min(batch.pictures // self.options.inner_updates, self.options.chunk)

    def after_update(self, lab: Lab) -> None:  # noqa: B027 - most engines keep nothing
        """Called after the optimiser step, without gradients."""
