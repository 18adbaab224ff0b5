"""DiffusionNFT: RL on the forward process, without likelihoods (arXiv 2509.16117).

Images are sampled with the "old" adapter, a lagging copy of the student. Each advantage becomes an optimality
probability r in [0, 1], and an implicit positive and an implicit negative policy are regressed on the re-noised images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Options
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count, Moderate, Weight
from bench.lazy import torch
from bench.sampler.draws import draw, normal
from bench.sampler.parts import parts
from bench.sampler.rollout import Sampler, Trajectory, rollout
from methods.rl.engine import Engine, Samples

if TYPE_CHECKING:
    from torch import Tensor

OLD = "old"
# The decay of the old policy after update k: old = decay * old + (1 - decay) * student. "slow" and "late" are "type 1"
# and "type 2" of the released code.
OLD_DECAY = {
    "slow": lambda k: min(0.001 * k, 0.5),
    "late": lambda k: 0.0 if k < 75 else min(0.0075 * (k - 75), 0.999),
    "none": lambda k: 0.0,
}


class NftOptions(Options):
    """Settings of DiffusionNFT; defaults as in the released GenEval configuration."""

    timesteps: Count = 9
    """Noise levels at which each image is trained, drawn from the rollout's schedule."""
    beta: Moderate = 1.0
    """Strength of the implicit policies: how far they are from the old policy along the student's change."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +- advantage_clip and mapped linearly to r in [0, 1]."""
    kl: Weight = 1e-4
    """Weight of the squared velocity error to the reference."""
    old_decay: Literal["slow", "late", "none"] = "slow"
    """How the old policy follows the student: slow and late raise its decay over training; none copies the student
    after every update."""
    chunk: Count = 192
    """Latents per forward with gradients; it bounds memory."""


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


class Nft(Engine):
    """DiffusionNFT's forward-process objective."""

    name = "nft"
    Options = NftOptions
    source = "DiffusionNFT, arXiv 2509.16117, Eq. 8"
    adapters = (OLD,)

    def sample(self, lab: Lab, task: str, conditioning: Conditioning) -> Trajectory:
        """Sample images with the old policy; only they are kept, not the trajectory."""
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        old = lab.velocity(conditioning, OLD)
        return rollout(old, noise, lab.sampler, lab.generator("kernel", task))

    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """Eq. 8 plus the penalty, one piece per noise level and chunk of images."""
        o, x0, cond = self.options, samples.trajectory.final, samples.conditioning
        r = optimality(samples.advantages, o.advantage_clip)
        generator = lab.generator("timesteps", task)
        levels = torch.tensor(lab.sampler.schedule.sigmas[:-1])
        count = min(o.timesteps, len(levels))

        def keys(rows: int) -> Tensor:
            return torch.rand(rows, len(levels), generator=generator)

        # Every image gets its own random noise levels, without repetition.
        order = draw(keys, len(x0), generator).argsort(1)[:, :count]
        drawn = levels[order].to(x0.device)
        for k in range(count):
            sigma = drawn[:, k]
            noise = normal(x0.shape, generator, x0.device)
            x_t = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
            for part in parts(range(len(x0)), o.chunk):
                state, prompts = (x_t[part], sigma[part]), cond[part]
                v = lab.velocity(prompts, STUDENT)(*state)
                with torch.no_grad():
                    v_old = lab.velocity(prompts, OLD)(*state)
                    # Without a penalty the reference's velocity is multiplied by 0: save its forward.
                    v_base = lab.velocity(prompts, reference)(*state) if o.kl else v_old
                loss = policy_loss(v, v_old, x_t[part], x0[part], sigma[part], r[part], o.beta)
                penalty = (v - v_base).square().flatten(1).mean(1)
                # The released code scales the policy loss by the clip of advantages, but not the penalty.
                pieces = o.advantage_clip * loss + o.kl * penalty
                yield pieces.sum() / (len(x0) * count)

    def passes(self, sampler: Sampler) -> Passes:
        """A rollout, and per noise level a pass of the student with gradients, one of the old policy and, with a
        penalty, one of the reference."""
        levels = min(self.options.timesteps, sampler.steps)
        fixed = 2 if self.options.kl else 1
        return Passes(forward=sampler.steps + levels * fixed, trained=levels)

    def kept(self, sampler: Sampler) -> int:
        """The image's latents, clean and re-noised."""
        return 2

    def after_update(self, lab: Lab) -> None:
        """Move the old policy towards the student."""
        keep = OLD_DECAY[self.options.old_decay](lab.step + 1)
        adapters = lab.backbone.adapters
        old, student = adapters.parameters(OLD), adapters.parameters(STUDENT)
        torch._foreach_lerp_(tuple(old), tuple(student), 1 - keep)
