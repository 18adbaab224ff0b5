"""Joint multi-reward RL: every update trains one adapter on all tasks, with any engine.

Each task has its own prompts and its own reward, as in the multi-task baselines of DiffusionOPD (arXiv 2605.15055,
Sec. 5). `mixing` sets the scale of advantages across tasks, and `weights` sets the weight of each task's gradient.
"""

from typing import ClassVar

from pydantic import Field

from bench.api.lab import Lab
from bench.config.bounds import Moderate
from bench.errors import unknown
from methods.combining import CombiningMethod, CombiningOptions
from methods.rl.method import RlMethod, RlOptions


class MultiRewardOptions(RlOptions, CombiningOptions):
    """Settings of joint RL."""

    unsaid: ClassVar[tuple[str, ...]] = ("weights", "combine")

    weights: dict[str, Moderate] = Field(default={})
    """task -> relative weight of its gradient, by default 1; the weights are normalised to add up to 1."""


class MultiReward(RlMethod, CombiningMethod):
    """RL on all tasks at once."""

    name = "multi_reward"
    source = "joint RL on all tasks (DiffusionNFT, arXiv 2509.16117), each task in its own deviation or all in one"
    Options = MultiRewardOptions

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse weights of tasks that the run does not train."""
        super().check(spec, sampler)
        for task in cls.Options.model_validate(spec.params).weights:
            if task not in spec.tasks:
                raise unknown("task in params.weights", task, spec.tasks)

    def plan(self, lab: Lab) -> dict[str, float]:
        """Weight all tasks equally, or by the normalised `weights`."""
        if not self.options.weights:
            return super().plan(lab)
        weights = {task: self.options.weights.get(task, 1.0) for task in lab.tasks}
        return {task: weight / sum(weights.values()) for task, weight in weights.items()}
