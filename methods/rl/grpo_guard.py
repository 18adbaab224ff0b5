"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a normalised ratio and per-step gradients of equal scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.config.bounds import Moderate, Weight
from bench.errors import UsageError
from bench.sampler.gaussian import Gaussian
from bench.sampler.rollout import Sampler
from methods.rl.grpo import Grpo, GrpoOptions, surrogate

if TYPE_CHECKING:
    from torch import Tensor


class GrpoGuardOptions(GrpoOptions):
    """Settings of GRPO-Guard; defaults as in the released configuration."""

    clip: Moderate = 2e-6
    kl: Weight = 0.0


class GrpoGuard(Grpo):
    name = "grpo_guard"
    Options = GrpoGuardOptions
    source = "GRPO-Guard, arXiv 2510.22319, Eq. 8-10 and released code"

    def check(self, sampler: Sampler, groups: int) -> None:
        super().check(sampler, groups)
        if self.options.log_prob != "gaussian":
            raise UsageError("params.grpo_guard.log_prob: the guard corrects the Gaussian's log-ratio, and no other")

    def log_ratio(self, new: Gaussian, old: Gaussian, drawn: Tensor) -> Tensor:
        """Adds the mean's shift back to the log-ratio, and scales it by the std.

        E[log ratio] under the old policy is -|mean shift|^2 / (2 std^2): without the correction the ratio is biased
        below 1; multiplied by std its spread no longer depends on the step.
        """
        return new.std * (super().log_ratio(new, old, drawn) + new.kl(old) / drawn[0].numel())

    def policy(self, log_ratio: Tensor, advantage: Tensor, h: float) -> Tensor:
        """Divided by the step's length: gradients of all steps have equal scale."""
        return surrogate(log_ratio, advantage, self.options.clip) / h
