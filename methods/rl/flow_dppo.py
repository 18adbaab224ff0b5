"""Flow-DPPO (arXiv 2606.11025): policy gradient with a trust region in the exact KL of a step, instead of its ratio.

As in the released code the KL is a mean over elements. Its configuration puts noise on any three of the first half of
the steps; here they are neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.config.bounds import Count, Fraction, Moderate, Weight
from bench.lazy import torch
from bench.sampler.rollout import Sampler
from methods.rl.grpo import Grpo, TrajectoryOptions
from methods.rl.windows import WindowOptions

if TYPE_CHECKING:
    from torch import Tensor


class FlowDppoOptions(TrajectoryOptions):
    """Settings of Flow-DPPO; defaults as in the released SD3.5-M configuration."""

    max_kl: Moderate = 1e-5
    """A step whose KL to the old policy is at least this, as a mean over elements, is not pushed further away."""
    kl: Weight = 0.0
    """Weight of the per-step KL to the reference."""
    timestep_fraction: Fraction = 0.5
    """The first int(steps * timestep_fraction) steps may be trained, except steps without noise."""
    window: WindowOptions = WindowOptions(size=3)
    """Which of these steps have noise and are trained."""
    inner_updates: Count = 2
    """Optimiser steps per update, each on its own share of the prompts. With 1 the KL is always 0."""


class FlowDppo(Grpo):
    """Flow-GRPO with Flow-DPPO's trust region."""

    name = "flow_dppo"
    Options = FlowDppoOptions
    source = "Flow-DPPO, arXiv 2606.11025, Eq. 14 and 18"

    def without_effect(self) -> dict[str, str]:
        """The trust region, if the policy that is trained is the one that sampled."""
        once = self.options.inner_updates == 1
        return {"max_kl": f"params.{self.name}.inner_updates is 1, so the KL is always 0"} if once else {}

    def outside(self, log_ratio: Tensor, advantage: Tensor, kl_old: Tensor) -> Tensor:
        """Whether a step is far from the old policy and its advantage would push it further, [B]."""
        pushed = torch.where(advantage > 0, log_ratio > 0, (log_ratio < 0) & (advantage < 0))
        return (kl_old >= self.options.max_kl) & pushed

    def policy(self, log_ratio: Tensor, advantage: Tensor, kl_old: Tensor, sampler: Sampler, k: int) -> Tensor:
        """-A r [B], or 0 outside the trust region."""
        loss = -advantage * log_ratio.exp()
        return torch.where(self.outside(log_ratio, advantage, kl_old), torch.zeros_like(loss), loss)
