"""Joint multi-reward RL: every update trains one adapter on all tasks, with any engine.

Each task has its own prompts and its own reward, as in the multi-task baselines of DiffusionOPD (arXiv 2605.15055,
Sec. 5). `mixing` sets the scale of advantages across tasks, and `weights` sets the weight of each task's gradient,
which `allocation` adapts to the rewards.
"""

from bench.api.lab import Lab
from methods.allocation import reward_gap
from methods.combining import CombiningMethod, CombiningOptions
from methods.rl.method import RlMethod, RlOptions


class MultiRewardOptions(RlOptions, CombiningOptions):
    """Settings of joint RL."""


class MultiReward(RlMethod, CombiningMethod):
    """RL on all tasks at once."""

    name = "multi_reward"
    title = "Joint RL"
    source = "joint RL on all tasks (DiffusionNFT, arXiv 2509.16117), each task in its own deviation or all in one"
    Options = MultiRewardOptions

    def distance(self, lab: Lab, task: str) -> float:
        """The highest reward minus the mean."""
        return reward_gap(lab, task)
