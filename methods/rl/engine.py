"""What an RL objective is: how it samples pictures and what it minimises, given advantages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.api.lab import Lab
from bench.api.method import Options
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.lazy import torch
from bench.sampler.rollout import Sampler, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Samples:
    """Pictures of one task: B = prompts x group of them, in prompt order."""

    trajectory: Trajectory
    conditioning: Conditioning
    rewards: np.ndarray
    """[prompts, group], at most 1 (see Scores)."""
    advantages: Tensor
    """[B]; filled once every task's rewards are known."""


class Engine(ABC):
    """One RL objective."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]]
    source: ClassVar[str]
    adapters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any):
        self.options = options

    def check(self, sampler: Sampler, groups: int) -> None:  # noqa: B027 - an engine may take any sampler
        """Raise UsageError for a sampler or a number of prompt groups that this objective cannot train on."""

    @abstractmethod
    def sample(self, lab: Lab, task: str, conditioning: Conditioning) -> Trajectory:
        """Draw one trajectory a prompt, without gradients."""

    @abstractmethod
    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """Scalar pieces of the loss; `reference` is the adapter (None: the base) that the penalty pulls towards."""

    @abstractmethod
    def passes(self, sampler: Sampler) -> Passes:
        """Passes that a picture costs in one update, in one guidance branch."""

    @abstractmethod
    def kept(self, sampler: Sampler) -> int:
        """Latents that lie in memory for a picture while losses are taken."""

    def after_update(self, lab: Lab) -> None:  # noqa: B027 - most engines keep nothing
        """Called after the optimiser's step, without gradients."""


def chunks(count: int, size: int) -> tuple[Tensor, ...]:
    """Index tensors that cover range(count)."""
    return torch.arange(count).split(size)
