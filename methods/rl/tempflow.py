"""TempFlow-GRPO (arXiv 2508.04324): the images of a group branch at one step, and steps count by their noise.

All images of a group start from the same noise and follow the ODE to the branching step, where each draws its own
noise, and then the ODE again. Differences in reward are thus due to that step alone. The common part is computed for
every image, so that every update costs the same. Every update branches at one step; the paper branches at several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.api.lab import Lab
from bench.errors import UsageError
from bench.sampler.rollout import Sampler
from methods.rl.engine import Batch
from methods.rl.grpo import Grpo, GrpoOptions
from methods.rl.windows import WindowOptions

if TYPE_CHECKING:
    from torch import Tensor


class TempFlowOptions(GrpoOptions):
    """Settings of TempFlow-GRPO."""

    window: WindowOptions = WindowOptions(size=1)
    """At which of the steps within the timestep fraction images branch; its size is 1."""


class TempFlow(Grpo):
    """Flow-GRPO on branches, with TempFlow-GRPO's weights."""

    name = "tempflow"
    Options = TempFlowOptions
    source = "TempFlow-GRPO, arXiv 2508.04324, Eq. 8"

    def check(self, sampler: Sampler, batch: Batch) -> None:
        """Also refuse windows of more or less than one step."""
        if self.options.window.size != 1:
            raise UsageError("params.tempflow.window.size must be 1: images branch at one step")
        super().check(sampler, batch)

    def start(self, lab: Lab, task: str, pictures: int, group_size: int) -> Tensor:
        """The same noise for all images of a group, [pictures, C, h, w]."""
        noise = lab.backbone.noise(pictures // group_size, lab.generator("noise", task))
        return noise.repeat_interleave(group_size, 0)

    def policy(self, log_ratio: Tensor, advantage: Tensor, kl_old: Tensor, sampler: Sampler, k: int) -> Tensor:
        """Flow-GRPO's clipped loss [B] times the step's std over the mean of all steps that may be trained."""
        stds = [sampler.coefficients[j].c for j in self.trained(sampler)]
        weight = sampler.coefficients[k].c * len(stds) / sum(stds)
        return weight * super().policy(log_ratio, advantage, kl_old, sampler, k)
