"""The shared part of methods that backpropagate the reward itself into the student: settings, checks, loss, cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bench.api.lab import Lab
from bench.api.method import Needs, Work
from bench.api.task import Prompt
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count
from bench.config.resolve import describe
from bench.errors import UsageError
from bench.sampler.total import Total
from bench.scoring.loading import load_tasks
from methods.allocation import reward_gap
from methods.combining import CombiningMethod, CombiningOptions

if TYPE_CHECKING:
    from torch import Tensor


class RewardGradientOptions(CombiningOptions):
    """Settings of all methods that backpropagate the reward."""

    trajectories: Count = 24
    """Trajectories per task and update."""
    chunk: Count = 24
    """Trajectories per backward pass, through network, decoder and scorer; it bounds memory."""


@dataclass
class Sampled:
    """States [B, C, h, w] of the student's trajectories without gradients, and their prompts."""

    states: list[Tensor]
    prompts: list[Prompt]
    conditioning: Conditioning


class RewardGradientMethod(CombiningMethod):
    """Checks, loss and cost shared by the methods that backpropagate the reward."""

    needs = Needs(rewards=True)
    in_all = False  # few tasks have a gradient
    lowers_memory: ClassVar[tuple[str, ...]] = ("chunk", "trajectories")
    Options: ClassVar[type[RewardGradientOptions]]

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse tasks whose reward has no gradient, such as those that a server scores."""
        super().check(spec, sampler)
        world = describe(spec.backbone).world
        for task, loaded in load_tasks(spec.tasks, world, spec.scorers, rewards=spec.rewards).items():
            if not loaded.differentiable:
                raise UsageError(
                    f"method {cls.name!r} backpropagates the reward, but the reward of task {task!r} has no gradient"
                )

    def distance(self, lab: Lab, task: str) -> float:
        """The highest reward minus the mean."""
        return reward_gap(lab, task)

    @classmethod
    def trajectory_work(cls, spec, sampler, forward: int, trained: int, kept: int) -> Work:
        """The work of one update, from the network calls of one trajectory per guidance branch and its kept states.

        The graphs of all `trained` calls of a chunk are in memory at once. Those of the decoder and of the scorer are
        not counted.
        """
        options = cls.Options.model_validate(spec.params)
        rows = options.trajectories * len(spec.tasks)
        each, at_once = sampler.passes(spec.sampler.guidance), min(options.chunk, options.trajectories)
        return Work(
            Passes(forward * each * rows, trained * each * rows),
            drawn=options.trajectories if forward else 0,
            trained_at_once=at_once * trained,
            kept=kept * rows,
            prompts=rows,
            pictures=rows,
            pictures_at_once=at_once,
        )


def reward_loss(lab: Lab, task: str, latents: Tensor, prompts: list[Prompt], whole: int, total: Total) -> Tensor:
    """Minus the sum of the latents' rewards over `whole`, the number of all latents of an update; added to `total`."""
    share = lab.differentiable_reward(task, latents, prompts).sum() / whole
    total.add(share)
    return -share
