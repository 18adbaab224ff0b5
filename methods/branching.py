"""Branches of a trajectory: next states drawn from one transition, completed without noise, scored, and weighted.

The weights are those of Self-OPD (arXiv 2608.26872). With rewards r_k of K branches y_k = m + c z_k and r_ode of the
step without noise

    w_k = clip(A_k d_k, -1, 1),   A_k = (r_k - r_ode) / max(std_k r_k, 1e-4),
    d_k = 1 for A_k >= 0, else (1 - cos(z_k, z_best)) / 2.

The standard deviation is the unbiased one, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.api.lab import STUDENT, Lab
from bench.api.task import Prompt, Scores
from bench.backbones.conditioning import Conditioning
from bench.lazy import torch
from bench.sampler.draws import normal
from bench.sampler.gaussian import Transition
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.transitions import KERNELS

if TYPE_CHECKING:
    from torch import Tensor

LEAST_STD = 1e-4
"""Least standard deviation of a state's rewards."""


@dataclass
class Branches:
    """The scored branches of the states of one step."""

    step: int
    """Index of the step in the schedule."""
    x: Tensor
    """States [B, C, h, w]."""
    mean: Tensor
    """Means m of the student's transition when the branches were drawn, [B, C, h, w]."""
    drawn: Tensor
    """Branches y_k [B, K, C, h, w]."""
    scores: Callable[[], Scores]
    """Waits for the scores of the B K branches, followed by those of the B steps without noise."""

    def rewards(self) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of the branches [B, K], and without noise [B]."""
        rewards, (states, count) = self.scores().rewards, self.drawn.shape[:2]
        return rewards[:-states].reshape(states, count), rewards[-states:]


def branch(
    lab: Lab, task: str, prompts: list[Prompt], conditioning: Conditioning, k: int, x: Tensor, v: Tensor, count: int,
    generator: torch.Generator,
) -> Branches:  # fmt: skip
    """Draw `count` branches at each state x [B, C, h, w] of step k, where the student's velocity is v; score them."""
    at = lab.sampler.coefficients[k]
    owners = [i for i in range(len(x)) for _ in range(count)]
    mean = Transition(x, v, at).mean
    drawn = mean.repeat_interleave(count, 0) + at.c * normal((len(owners), *x.shape[1:]), generator, x.device)
    schedule, ode = lab.sampler.schedule, KERNELS["ode"]
    without_noise = Transition(x, v, ode.coefficients(schedule, 0.0)[k]).mean
    owners += range(len(x))
    following = torch.cat([drawn, without_noise])
    rest = Sampler(schedule.after(k + 1), ode)
    if rest.steps:  # else these are the images already
        following = rollout(lab.velocity(conditioning[owners], STUDENT), following, rest, generator).final
    scores = lab.score_later(task, following, [prompts[i] for i in owners])
    return Branches(k, x, mean, drawn.unflatten(0, (len(x), count)), scores)


def branch_weights(rewards: Tensor, without_noise: Tensor, directions: Tensor, clip: float) -> Tensor:
    """Weights w_k [B, K] from rewards of the branches [B, K] and without noise [B], and c z_k [B, K, C, h, w]."""
    deviation = rewards.std(1, keepdim=True).clamp(min=LEAST_STD)
    advantages = (rewards - without_noise[:, None]) / deviation
    units = torch.nn.functional.normalize(directions.flatten(2), dim=2)
    best = units[torch.arange(len(units), device=units.device), advantages.argmax(1)]
    cosines = (units * best[:, None]).sum(2)
    along = torch.where(advantages < 0, (1 - cosines) / 2, 1.0)
    return (advantages * along).clamp(-clip, clip)
