"""DiffusionNFT: RL on the forward process, without likelihoods (arXiv 2509.16117).

Pictures come from the "old" adapter. Advantages become an optimality probability r in [0, 1], and an implicit
positive and negative policy are regressed on re-noised pictures.
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
from bench.sampler.rollout import Sampler, Trajectory, rollout
from methods.rl.engine import Engine, Samples, chunks

if TYPE_CHECKING:
    from torch import Tensor

OLD = "old"
# How fast the old policy follows: decay of step k (released code, "type 1" and "type 2").
OLD_DECAY = {
    "slow": lambda k: min(0.001 * k, 0.5),
    "late": lambda k: 0.0 if k < 75 else min(0.0075 * (k - 75), 0.999),
    "none": lambda k: 0.0,
}


class NftOptions(Options):
    """Settings of DiffusionNFT; defaults as in the released GenEval configuration."""

    timesteps: Count = 9
    """Noise levels of the rollout's schedule on which each picture is trained."""
    beta: Moderate = 1.0
    """Mixing strength of the implicit policies."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +-this and divided by twice this."""
    kl: Weight = 1e-4
    """Weight of the velocity error to the reference."""
    old_decay: Literal["slow", "late", "none"] = "slow"
    chunk: Count = 192
    """Latents per forward in training."""


def optimality(advantages_B: Tensor, clip: float) -> Tensor:
    """Advantages -> r in [0, 1], [B]: 1/2 + clipped advantage / (2 clip)."""
    return (advantages_B.clamp(-clip, clip) / (2 * clip) + 0.5).clamp(0, 1)


def policy_loss(v: Tensor, v_old: Tensor, x_t: Tensor, x0: Tensor, sigma_B: Tensor, r_B: Tensor, beta: float) -> Tensor:
    """Per-sample loss [B] of Eq. 8 with the released code's adaptive weighting: r L+ / beta + (1 - r) L- / beta."""

    def error(velocity: Tensor) -> Tensor:
        gap = x_t - sigma_B.view(-1, 1, 1, 1) * velocity - x0
        weight = gap.detach().abs().flatten(1).double().mean(1).clamp_min(1e-5)
        return (gap.square().flatten(1).mean(1) / weight).float()

    positive = error(beta * v + (1 - beta) * v_old)
    negative = error((1 + beta) * v_old - beta * v)
    return (r_B * positive + (1 - r_B) * negative) / beta


class Nft(Engine):
    name = "nft"
    Options = NftOptions
    source = "DiffusionNFT, arXiv 2509.16117, Eq. 8"
    adapters = (OLD,)

    def sample(self, lab: Lab, task: str, conditioning: Conditioning) -> Trajectory:
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        return rollout(lab.velocity(conditioning, OLD), noise, lab.sampler, lab.generator("kernel", task))

    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        o, x0, cond = self.options, samples.trajectory.final, samples.conditioning
        r = optimality(samples.advantages, o.advantage_clip)
        generator = lab.generator("timesteps", task)
        levels = torch.tensor(lab.sampler.schedule.sigmas[:-1])
        count = min(o.timesteps, len(levels))
        # Every picture gets its own random levels, without repetition.
        mixed = draw(lambda n: torch.rand(n, len(levels), generator=generator), len(x0), generator)
        order = mixed.argsort(1)[:, :count]
        for k in range(count):
            sigma = levels[order[:, k]].to(x0.device)
            x_t = torch.lerp(x0, normal(x0.shape, generator).to(x0.device), sigma.view(-1, 1, 1, 1))
            for part in chunks(len(x0), o.chunk):
                v = lab.velocity(cond[part], STUDENT)(x_t[part], sigma[part])
                with torch.no_grad():
                    v_old = lab.velocity(cond[part], OLD)(x_t[part], sigma[part])
                    v_base = lab.velocity(cond[part], reference)(x_t[part], sigma[part]) if o.kl else v_old
                loss = policy_loss(v, v_old, x_t[part], x0[part], sigma[part], r[part], o.beta)
                penalty = (v - v_base).square().flatten(1).mean(1)
                yield (o.advantage_clip * loss + o.kl * penalty).sum() / (len(x0) * count)

    def passes(self, sampler: Sampler) -> Passes:
        levels = min(self.options.timesteps, sampler.steps)
        return Passes(forward=sampler.steps + levels * (2 if self.options.kl else 1), trained=levels)

    def kept(self, sampler: Sampler) -> int:
        return 2  # the picture, and the picture with noise

    def after_update(self, lab: Lab) -> None:
        keep = OLD_DECAY[self.options.old_decay](lab.step + 1)
        adapters = lab.backbone.adapters
        torch._foreach_lerp_(tuple(adapters.parameters(OLD)), tuple(adapters.parameters(STUDENT)), 1 - keep)
