"""Centered Reward Distillation (arXiv 2603.14128): the student's implicit reward is regressed on the group's rewards.

The implicit reward of an image is the fall of its flow-matching error below that of the old policy. Reward and implicit
reward are known up to a constant of the prompt, so both are centred in the group. A second lagging copy of the student
samples the images, the penalty pulls towards a guided reference, and it is weaker for worse images. The public
re-implementation X-GenGroup/Flow-Factory centres over its whole batch; here it is the prompt's group, as in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bench.api.lab import Lab
from bench.config.bounds import Guidance, Moderate, Weight
from methods.rl.forward_process import OLD, ForwardOptions, ForwardProcess
from methods.rl.nft import optimality
from methods.rl.old_policy import OLD_DECAY
from methods.rl.renoised import Renoised, mean_square

if TYPE_CHECKING:
    from torch import Tensor

SAMPLING = "sampling"
"""Adapter that samples the images."""
LEAST_KL = 1e-4
"""Weight of the penalty of an image with reward 0."""


class CrdOptions(ForwardOptions):
    """Settings of CRD; defaults as for OCR in the paper's Table 3 (in which `inner_updates` is 2)."""

    beta: Moderate = 1.0
    """Scale of the implicit reward."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +- advantage_clip and mapped linearly to rewards in [0, 1]."""
    kl: Weight = 0.1
    """Weight of the squared velocity error to the reference for an image with reward 1."""
    reference_guidance: Guidance = 4.5
    """Guidance scale of the reference."""
    old_decay: Literal["long", "slow", "late", "none"] = "long"
    """How the old policy, to which implicit rewards are relative, follows the student: long, slow and late raise its
    decay over training, long from 0.25; none copies the student after every update."""
    sampling_decay: Literal["late", "slow", "none"] = "late"
    """How the policy that samples follows the student, likewise."""


def implicit_reward(v: Tensor, v_old: Tensor, target: Tensor) -> Tensor:
    """The old policy's error minus the student's, [B], each divided by its mean absolute error without gradients."""

    def error(velocity: Tensor) -> Tensor:
        gap = velocity - target
        # As in DiffusionNFT: the weight in float64, without gradients.
        size = gap.detach().abs().flatten(1).double().mean(1).clamp_min(1e-5)
        return (mean_square(gap) / size).float()

    return error(v_old) - error(v)


def centred(values_B: Tensor, group_size: int) -> Tensor:
    """Values [B] minus the mean of their group."""
    grouped = values_B.view(-1, group_size)
    return (grouped - grouped.mean(1, keepdim=True)).flatten()


class Crd(ForwardProcess):
    """CRD's forward-process objective."""

    name = "crd"
    Options = CrdOptions
    source = "Centered Reward Distillation, arXiv 2603.14128"
    adapters: ClassVar[tuple[str, ...]] = (OLD, SAMPLING)
    sampled_by = SAMPLING
    penalises_distance = False
    options: CrdOptions

    def compared(self, group_size: int) -> int:
        """The whole group."""
        return group_size

    @property
    def reference_guidance(self) -> float:
        """As set."""
        return self.options.reference_guidance

    def without_effect(self) -> dict[str, str]:
        """The reference's guidance scale without a penalty."""
        return {} if self.needs_reference else {"reference_guidance": f"params.{self.name}.kl is 0"}

    def policy_loss(self, at: Renoised) -> Tensor:
        """Squared difference of the centred rewards, times clip / beta, which gives gradients the scale of NFT's."""
        o = self.options
        implied = centred(implicit_reward(at.v, at.v_old, at.target), at.group_size)
        reward = centred(optimality(at.advantages, o.advantage_clip), at.group_size)
        return (o.beta * implied - reward).square() * (o.advantage_clip / o.beta)

    def penalty(self, at: Renoised) -> Tensor:
        """The squared velocity error to the reference, [B], in proportion to the image's reward."""
        least = min(LEAST_KL / self.options.kl, 1.0) if self.options.kl else 0.0
        reward = optimality(at.advantages, self.options.advantage_clip)
        return (least + (1 - least) * reward) * super().penalty(at)

    def after_update(self, lab: Lab) -> None:
        """Also move the policy that samples."""
        super().after_update(lab)
        updates = (lab.step + 1) * self.options.inner_updates
        self.follow(lab, SAMPLING, OLD_DECAY[self.options.sampling_decay](updates))
