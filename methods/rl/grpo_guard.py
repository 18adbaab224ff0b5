"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a normalised ratio and gradients of equal scale at all steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.config.bounds import Moderate, Weight
from bench.errors import UsageError
from bench.sampler.gaussian import Gaussian
from bench.sampler.rollout import Sampler
from methods.rl.engine import Batch
from methods.rl.grpo import Grpo, GrpoOptions

if TYPE_CHECKING:
    from torch import Tensor


class GrpoGuardOptions(GrpoOptions):
    """Settings of GRPO-Guard; defaults as in the released configuration."""

    clip: Moderate = 2e-6
    """The normalised ratio is clipped to 1 +- clip."""
    kl: Weight = 0.0
    """Weight of the per-step KL to the reference."""


class GrpoGuard(Grpo):
    """Flow-GRPO with GRPO-Guard's ratio and step scaling."""

    name = "grpo_guard"
    Options = GrpoGuardOptions
    source = "GRPO-Guard, arXiv 2510.22319, Eq. 8-10 and released code"

    def check(self, sampler: Sampler, batch: Batch) -> None:
        """Also refuse any `log_prob` but the Gaussian's."""
        super().check(sampler, batch)
        if self.options.log_prob != "gaussian":
            raise UsageError(
                f"params.grpo_guard.log_prob {self.options.log_prob}: GRPO-Guard corrects the Gaussian log-ratio; "
                "set gaussian"
            )

    def log_ratio(self, new: Gaussian, old: Gaussian, drawn: Tensor) -> Tensor:
        """Log-ratio [B] with its bias removed, times the std of the step.

        Under the old policy the log-ratio has the mean -|mean shift|^2 / (2 std^2), so the ratio is biased below 1;
        adding the KL removes this. Multiplied by the std, its spread no longer depends on the step.
        """
        bias = new.kl(old) / drawn[0].numel()
        return new.std * (super().log_ratio(new, old, drawn) + bias)

    def policy(self, log_ratio: Tensor, advantage: Tensor, kl_old: Tensor, sampler: Sampler, k: int) -> Tensor:
        """Clipped loss [B] divided by the step length, so that all steps have gradients of equal scale."""
        return super().policy(log_ratio, advantage, kl_old, sampler, k) / sampler.schedule.h(k)
