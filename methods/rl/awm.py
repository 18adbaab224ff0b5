"""Advantage Weighted Matching (arXiv 2509.25050): a policy gradient whose log-probability is the flow-matching loss.

As in the released code, the log-probability of an image at a noise level is a generalised Huber function of minus the
velocity's mean squared error, and a second penalty pulls towards a lagging copy of the student. The released default
samples with the student itself, so that every ratio is 1; here images are sampled with the lagging copy, as with its
option `off_policy`. It draws one noise level from each of `timesteps` equal parts of the schedule, for GenEval and OCR
without sigma = 1; here they are drawn without repetition from all. Its advantages are divided by the clip range, as
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.config.bounds import Count, Fraction, Moderate, Weight
from methods.rl.forward_process import ForwardOptions, ForwardProcess
from methods.rl.grpo import surrogate
from methods.rl.renoised import Renoised, mean_square

if TYPE_CHECKING:
    from torch import Tensor

POWER, SMALL = 0.25, 1e-10
"""Exponent of the generalised Huber function, and what keeps its derivative finite at 0."""


class AwmOptions(ForwardOptions):
    """Settings of AWM; defaults as in the released SD3.5-M configuration for OCR."""

    timesteps: Count = 6
    """Noise levels at which each image is trained, drawn from the rollout's schedule."""
    timestep_fraction: Fraction = 0.9
    """Noise levels are drawn from the first int(steps * timestep_fraction) of the schedule, the noisiest."""
    clip: Moderate = 1.0
    """The ratio is clipped to 1 +- clip."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +- advantage_clip and divided by it."""
    kl: Weight = 3e-3
    """Weight of the squared velocity error to the reference."""
    kl_old: Weight = 1.0
    """Weight of the squared velocity error to the old policy."""
    old_decay: Literal["short", "slow", "none"] = "short"
    """How the old policy follows the student: short and slow raise its decay to 0.3 and 0.5 over training; none copies
    the student after every update."""


def log_probability(error_B: Tensor, sigma_B: Tensor) -> Tensor:
    """Surrogate log-probability [B]: -sigma ((e + 1e-10)^p - 1e-10^p) / p of the velocity's mean squared error e."""
    # In float64 as in the released code: the fourth root is steep at small errors.
    grown = (error_B.double() + SMALL) ** POWER - SMALL**POWER
    return -sigma_B * grown / POWER


class Awm(ForwardProcess):
    """AWM's forward-process objective."""

    name = "awm"
    Options = AwmOptions
    source = "Advantage Weighted Matching, arXiv 2509.25050, and released code"
    likelihood = True
    options: AwmOptions

    def log_ratio(self, at: Renoised) -> Tensor:
        """Difference [B] of the surrogate log-probabilities of the student and the old policy."""
        new, old = (log_probability(at.error(v), at.sigma) for v in (at.v, at.v_old))
        return (new - old).float()

    def policy_loss(self, at: Renoised) -> Tensor:
        """PPO's clipped loss, plus the penalty towards the old policy."""
        o = self.options
        advantage = at.advantages.clamp(-o.advantage_clip, o.advantage_clip) / o.advantage_clip
        return surrogate(self.log_ratio(at), advantage, o.clip) + o.kl_old * mean_square(at.v - at.v_old)
