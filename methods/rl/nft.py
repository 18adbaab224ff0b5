"""DiffusionNFT: RL on the forward process, without likelihoods (arXiv 2509.16117).

Images are sampled with the "old" adapter, a lagging copy of the student. Each advantage becomes an optimality
probability r in [0, 1], and an implicit positive and an implicit negative policy are regressed on the re-noised images.
With several inner updates the released OCR recipe shuffles images into shares; here shares are of whole prompts. Its
decay of the old policy counts optimiser steps, as here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.config.bounds import Moderate
from methods.rl.forward_process import ForwardOptions, ForwardProcess
from methods.rl.renoised import Renoised

if TYPE_CHECKING:
    from torch import Tensor


class NftOptions(ForwardOptions):
    """Settings of DiffusionNFT; defaults as in the released GenEval configuration."""

    beta: Moderate = 1.0
    """Strength of the implicit policies: how far they are from the old policy along the student's change."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +- advantage_clip and mapped linearly to r in [0, 1]."""
    old_decay: Literal["slow", "late", "none"] = "slow"
    """How the old policy follows the student: slow and late raise its decay over training; none copies the student
    after every update."""


def optimality(advantages_B: Tensor, clip: float) -> Tensor:
    """Advantages [B] -> optimality probabilities r in [0, 1], [B]: 1/2 + clipped advantage / (2 clip)."""
    clipped = advantages_B.clamp(-clip, clip)
    return (clipped / (2 * clip) + 0.5).clamp(0, 1)


def policy_loss(v: Tensor, v_old: Tensor, x_t: Tensor, x0: Tensor, sigma_B: Tensor, r_B: Tensor, beta: float) -> Tensor:
    """Per-sample loss [B] of Eq. 8 with the released code's adaptive weighting: r L+ / beta + (1 - r) L- / beta.

    v, v_old, x_t and x0 are [B, C, h, w]; sigma_B and r_B are [B].
    """

    def error(velocity: Tensor) -> Tensor:
        gap = x_t - sigma_B.view(-1, 1, 1, 1) * velocity - x0
        # The mean absolute error, in float64 as in the released code; no gradient flows through the weight.
        size = gap.detach().abs().flatten(1).double()
        weight = size.mean(1).clamp_min(1e-5)
        return (gap.square().flatten(1).mean(1) / weight).float()

    # The implicit policies: beta times the student's change is added to the old velocity, or subtracted from it.
    positive = error(beta * v + (1 - beta) * v_old)
    negative = error((1 + beta) * v_old - beta * v)
    return (r_B * positive + (1 - r_B) * negative) / beta


class Nft(ForwardProcess):
    """DiffusionNFT's forward-process objective."""

    name = "nft"
    Options = NftOptions
    source = "DiffusionNFT, arXiv 2509.16117, Eq. 8"
    options: NftOptions

    def policy_loss(self, at: Renoised) -> Tensor:
        """Eq. 8. The released code scales it by the clip of advantages, but not the penalty."""
        o = self.options
        r = optimality(at.advantages, o.advantage_clip)
        return o.advantage_clip * policy_loss(at.v, at.v_old, at.x_t, at.x0, at.sigma, r, o.beta)
