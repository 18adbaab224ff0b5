"""Online Diffusion-DPO (arXiv 2311.12908) on flow models: the best and the worst image of each group are a pair.

As in Flow-GRPO's released code for online DPO, the old policy both samples and is DPO's reference. It is replaced by
the student after every `refresh` optimiser steps, and the images of a pair share noise and noise level. Two of its
details are not reproduced. Where all rewards of a group are equal it trains on an arbitrary pair; here such a group has
no gradient. It trains a pair at 39 noise levels from a logit-normal distribution; here `timesteps` of them are drawn
from the rollout's schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.api.lab import Lab
from bench.config.bounds import Count, Moderate, Weight
from bench.lazy import torch
from bench.sampler.rollout import Trajectory
from methods.rl.engine import Batch, Samples
from methods.rl.forward_process import ForwardOptions, ForwardProcess
from methods.rl.renoised import Renoised

if TYPE_CHECKING:
    from torch import Tensor


class DpoOptions(ForwardOptions):
    """Settings of online Diffusion-DPO; defaults as in Flow-GRPO's released configuration."""

    beta: Moderate = 100.0
    """Strength of the KL regularisation towards the old policy."""
    kl: Weight = 0.0
    """Weight of the squared velocity error to the reference."""
    refresh: Count = 40
    """The old policy is replaced by the student after every so many optimiser steps. The released configurations never
    do; their comment names 40 for online DPO."""


def best_and_worst(samples: Samples) -> Samples:
    """Two images per group: the one with the largest advantage, then the one with the smallest."""
    grouped = samples.advantages.view(-1, samples.group_size)
    first = torch.arange(len(grouped), device=grouped.device) * samples.group_size
    rows = torch.stack([first + grouped.argmax(1), first + grouped.argmin(1)], 1).flatten()
    pairs = replace(
        samples,
        trajectory=Trajectory(samples.trajectory.final[rows]),
        conditioning=samples.conditioning[rows],
        group_size=2,
    )
    pairs.advantages = samples.advantages[rows]
    return pairs


class Dpo(ForwardProcess):
    """Diffusion-DPO on pairs of the student's own images."""

    name = "dpo"
    Options = DpoOptions
    source = "Diffusion-DPO, arXiv 2311.12908, Eq. 14, online as in Flow-GRPO's released code"
    shared_noise = True
    trained_guidance = 1.0  # as in the released code: the error of the velocity without guidance
    options: DpoOptions

    def compared(self, group_size: int) -> int:
        """A pair."""
        return 2

    def trained(self, batch: Batch) -> int:
        """Two images per group."""
        return 2 * batch.groups

    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """The loop over the pairs."""
        yield from super().losses(lab, task, best_and_worst(samples), reference)

    def policy_loss(self, at: Renoised) -> Tensor:
        """-log sigmoid(-beta/2 (winner's gain - loser's gain)), [B], the same for both images of a pair.

        A gain is the increase of the flow-matching error over the old policy's.
        """
        gain = (at.error(at.v) - at.error(at.v_old)).view(-1, 2)
        loss = -torch.nn.functional.logsigmoid(-0.5 * self.options.beta * (gain[:, 0] - gain[:, 1]))
        advantages = at.advantages.view(-1, 2)
        decided = advantages[:, 0] > advantages[:, 1]
        return (loss * decided).repeat_interleave(2)

    def decay(self, updates: int) -> float:
        """0 where the old policy is replaced, else 1."""
        # Inner updates count, as in the released code, but the old policy is only replaced between updates.
        before = updates - self.options.inner_updates
        return 0.0 if updates // self.options.refresh > before // self.options.refresh else 1.0
