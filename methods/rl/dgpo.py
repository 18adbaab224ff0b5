"""DGPO (arXiv 2510.08425): direct preferences between the better and the worse images of a group, without a policy.

The loss is the advantage times the flow-matching error, weighted per group by how far the student already prefers the
better images to the worse ones, relative to the reference. As in the released code the images of a group share noise
and noise levels, and an image no longer counts once its likelihood ratio to the old policy leaves the clip range in the
direction of its advantage. The released code samples with the student for its first updates; here it is the old policy
from the start, which is close to the student then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.config.bounds import Count, Fraction, Guidance, Moderate, Weight
from bench.lazy import torch
from methods.rl.forward_process import ForwardOptions, ForwardProcess
from methods.rl.renoised import Renoised

if TYPE_CHECKING:
    from torch import Tensor


class DgpoOptions(ForwardOptions):
    """Settings of DGPO; defaults as in the released SD3.5-M configuration for OCR."""

    timesteps: Count = 4
    """Noise levels at which each image is trained, drawn from the rollout's schedule."""
    timestep_fraction: Fraction = 0.7
    """Noise levels are drawn from the first int(steps * timestep_fraction) of the schedule, the noisiest."""
    beta: Moderate = 100.0
    """Strength of the regularisation towards the reference: it scales the sum that sets a group's weight."""
    clip: Moderate = 1e-3
    """Images whose ratio is beyond 1 +- clip on the side of their advantage are not trained."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +- advantage_clip."""
    kl: Weight = 0.02
    """Weight of the squared velocity error to the reference."""
    reference_guidance: Guidance = 4.5
    """Guidance scale of the reference."""
    old_decay: Literal["short", "slow", "none"] = "short"
    """How the old policy follows the student: short and slow raise its decay to 0.3 and 0.5 over training; none copies
    the student after every update."""


def group_weights(gain_B: Tensor, advantages_B: Tensor, beta: float, group_size: int) -> Tensor:
    """Weight of each image's group, [B]: sigmoid of the group's mean of beta A gain.

    `gain` is the increase of the student's flow-matching error over the reference's, [B].
    """
    terms = (beta * advantages_B * gain_B).view(-1, group_size)
    return torch.sigmoid(terms.mean(1)).repeat_interleave(group_size)


class Dgpo(ForwardProcess):
    """DGPO's forward-process objective."""

    name = "dgpo"
    Options = DgpoOptions
    source = "DGPO, arXiv 2510.08425, and released code"
    shared_noise = likelihood = True
    penalises_distance = False
    trained_guidance = 1.0  # as in the released code: the error of the velocity without guidance
    options: DgpoOptions

    def compared(self, group_size: int) -> int:
        """The whole group."""
        return group_size

    @property
    def needs_reference(self) -> bool:
        """Always: the group's weight is relative to the reference."""
        return True

    @property
    def reference_guidance(self) -> float:
        """As set."""
        return self.options.reference_guidance

    def log_ratio(self, at: Renoised) -> Tensor:
        """The old policy's flow-matching error minus the student's, [B]."""
        return at.error(at.v_old) - at.error(at.v)

    def policy_loss(self, at: Renoised) -> Tensor:
        """w A e, with the flow-matching error e and the group's weight w, for images within the clip range."""
        o = self.options
        advantage = at.advantages.clamp(-o.advantage_clip, o.advantage_clip)
        error = at.error(at.v)
        with torch.no_grad():
            gain = error - at.error(at.v_reference)
            weight = group_weights(gain, advantage, o.beta, at.group_size)
            ratio = self.log_ratio(at).exp()
            beyond = torch.where(advantage > 0, ratio > 1 + o.clip, ratio < 1 - o.clip)
        return weight * advantage * torch.where(beyond, error.detach(), error)
