"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a normalised ratio and per-step gradients of equal scale."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from bench.sampler.gaussian import Gaussian
from methods.rl.grpo import Grpo, GrpoOptions, surrogate


class GrpoGuardOptions(GrpoOptions):
    """Settings of GRPO-Guard; defaults as in the released configuration."""

    clip: Annotated[float, Field(gt=0)] = 2e-6
    kl: Annotated[float, Field(ge=0)] = 0.0


class GrpoGuard(Grpo):
    name = "grpo_guard"
    Options = GrpoGuardOptions
    source = "GRPO-Guard, arXiv 2510.22319, Eq. 8-10 and released code"

    def policy(self, new: Gaussian, old: Gaussian, drawn: Tensor, advantage: Tensor, h: float) -> Tensor:
        """Adds the mean's shift back to the log-ratio, scales it by the std, and divides the loss by the step size.

        E[log ratio] under the old policy is -|mean shift|^2 / (2 std^2): without the correction the ratio is biased
        below 1; multiplied by std its spread no longer depends on the step.
        """
        size = drawn[0].numel()
        log_ratio = (new.log_prob(drawn) - old.log_prob(drawn)) / size
        shift = new.kl(old) / size
        return surrogate(new.std * (log_ratio + shift), advantage, self.options.clip) / h
