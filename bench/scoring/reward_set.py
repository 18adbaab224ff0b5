"""A task with several rewards: further scorers score the images of its own prompts (settings: rewards.TASK.SCORER)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.api.task import Prompt, Scores, Task, TaskAround

if TYPE_CHECKING:
    from torch import Tensor


class RewardSet(TaskAround):
    """A task whose reward is the weighted sum of its own reward and those of `others`; everything else is the task's.

    The others' metrics are named SCORER.METRIC. Details are the task's own.
    """

    def __init__(self, inner: Task, others: list[Task], weights: dict[str, float]):
        """`weights`: scorer -> weight, for the task itself and for each of the others."""
        super().__init__(inner)
        self.scorers = {scorer.name: scorer for scorer in (inner, *others)}
        self.others = {scorer.name: scorer for scorer in others}
        self.reward_weights = {name: weights[name] for name in self.scorers}
        self.version = self._named({name: scorer.version for name, scorer in self.scorers.items()})
        self.lowest_reward = sum(weights[name] * scorer.lowest_reward for name, scorer in self.scorers.items())

    def _named(self, names: dict[str, str]) -> str:
        return " + ".join(f"{self.reward_weights[name]} x {named}" for name, named in names.items())

    @property
    def scorer_name(self) -> str:
        """The names of all scorers with their weights."""
        return self._named({name: scorer.scorer_name for name, scorer in self.scorers.items()})

    @property
    def elsewhere(self) -> bool:
        """Whether all scorers leave the model's device alone."""
        return all(scorer.elsewhere for scorer in self.scorers.values())

    def check(self, prompt: Prompt) -> None:
        """Raise UsageError for a prompt that one of the scorers cannot score."""
        for scorer in self.scorers.values():
            scorer.check(prompt)

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The weighted sum of the rewards, each of them, and the metrics of all scorers."""
        own = self.inner.score(images_BCHW, prompts)
        metrics, separate = dict(own.metrics), {self.name: own.rewards}
        for name, scorer in self.others.items():
            found = scorer.score(images_BCHW, prompts)
            separate[name] = found.rewards
            metrics |= {f"{name}.{metric}": values for metric, values in found.metrics.items()}
        weighted = [self.reward_weights[name] * rewards for name, rewards in separate.items()]
        return Scores(np.sum(weighted, 0), metrics, own.details, separate)

    @property
    def differentiable(self) -> bool:
        """Whether all rewards have a gradient."""
        return all(scorer.differentiable for scorer in self.scorers.values())

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """The weighted sum [B] of the differentiable rewards. Raises UsageError if one of them has no gradient."""
        first, *others = (
            self.reward_weights[name] * scorer.differentiable_reward(images_BCHW, prompts)
            for name, scorer in self.scorers.items()
        )
        return sum(others, first)

    def audit(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """The metrics of the scorers' independent scorers."""
        found = self.inner.audit(images_BCHW, prompts)
        for name, scorer in self.others.items():
            audited = scorer.audit(images_BCHW, prompts)
            found |= {f"{name}.{metric}": values for metric, values in audited.items()}
        return found
