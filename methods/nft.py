"""DiffusionNFT: RL on the forward process, without likelihoods (arXiv 2509.16117).

Each update samples groups of pictures with the "old" adapter and no guidance, turns rewards into an optimality
probability r in [0, 1] per picture, and regresses an implicit positive and negative policy on re-noised pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.lab import STUDENT, Lab
from bench.method import Method, Needs, Options
from bench.sampler.rollout import rollout

OLD = "old"
# How fast the old policy follows: decay of step k (released code, "type 1" and "type 2").
OLD_DECAY = {
    "slow": lambda k: min(0.001 * k, 0.5),
    "late": lambda k: 0.0 if k < 75 else min(0.0075 * (k - 75), 0.999),
    "none": lambda k: 0.0,
}


class NftOptions(Options):
    """Settings of DiffusionNFT; defaults as in the released GenEval configuration."""

    groups: Annotated[int, Field(gt=0)] = 48
    """Prompts per task and update."""
    group_size: Annotated[int, Field(gt=1)] = 24
    """Pictures per prompt."""
    timesteps: Annotated[int, Field(gt=0)] = 9
    """Noise levels of the rollout's schedule on which each picture is trained."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Mixing strength of the implicit policies."""
    advantage_clip: Annotated[float, Field(gt=0)] = 5.0
    """Advantages are clipped to +-this and divided by twice this."""
    kl: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the velocity error to the base."""
    global_std: bool = True
    """Divide advantages by the batch's standard deviation, not the group's."""
    old_decay: Literal["slow", "late", "none"] = "slow"
    chunk: Annotated[int, Field(gt=0)] = 192
    """Latents per forward in training."""


@dataclass
class Pictures:
    """Clean latents [B, C, h, w] of the old policy, their prompts and optimality r [B]."""

    x0: Tensor
    conditioning: Conditioning
    optimality: Tensor


def optimality(rewards_PG: np.ndarray, clip: float, global_std: bool) -> np.ndarray:
    """Rewards [prompts, group] -> r in [0, 1], [prompts * group]: 1/2 + clipped advantage / (2 clip)."""
    centred = rewards_PG - rewards_PG.mean(1, keepdims=True)
    std = rewards_PG.std() if global_std else rewards_PG.std(1, keepdims=True)
    advantages = (centred / (std + 1e-4)).clip(-clip, clip)
    return (advantages / (2 * clip) + 0.5).clip(0, 1).reshape(-1)


def policy_loss(v: Tensor, v_old: Tensor, x_t: Tensor, x0: Tensor, sigma_B: Tensor, r_B: Tensor, beta: float) -> Tensor:
    """Per-sample loss [B] of Eq. 8 with the released code's adaptive weighting: r L+ / beta + (1 - r) L- / beta."""

    def error(velocity: Tensor) -> Tensor:
        gap = x_t - sigma_B.view(-1, 1, 1, 1) * velocity - x0
        weight = gap.detach().abs().flatten(1).double().mean(1).clamp_min(1e-5)
        return (gap.square().flatten(1).mean(1) / weight).float()

    positive = error(beta * v + (1 - beta) * v_old)
    negative = error((1 + beta) * v_old - beta * v)
    return (r_B * positive + (1 - r_B) * negative) / beta


class DiffusionNft(Method[Pictures]):
    name = "nft"
    source = "DiffusionNFT, arXiv 2509.16117, Eq. 8"
    needs = Needs(rewards=True)
    Options = NftOptions
    adapters = (OLD,)

    @classmethod
    def predict(cls, spec, sampler) -> int:
        o = NftOptions.model_validate(spec.params)
        branches = 1 if spec.sampler.guidance == 1 else 2
        per_level = 3 + 1 + (1 if o.kl else 0)
        levels = min(o.timesteps, sampler.steps)
        return len(spec.tasks) * o.groups * o.group_size * branches * (sampler.steps + levels * per_level)

    def collect(self, lab: Lab, task: str) -> Pictures:
        o = self.options
        prompts = [p for p in lab.prompts(task, o.groups) for _ in range(o.group_size)]
        conditioning = lab.encode(prompts)
        noise = lab.backbone.noise(len(prompts), lab.generator("noise", task))
        x0 = rollout(lab.velocity(conditioning, OLD), noise, lab.sampler, lab.generator("kernel", task)).final
        rewards = lab.score(task, x0, prompts).rewards.reshape(o.groups, o.group_size)
        lab.note(f"reward/{task}", float(rewards.mean()))
        lab.note(f"reward_std/{task}", float(rewards.std(1).mean()))
        r = optimality(rewards, o.advantage_clip, o.global_std)
        return Pictures(x0, conditioning, torch.as_tensor(r, dtype=torch.float32, device=x0.device))

    def losses(self, lab: Lab, task: str, experience: Pictures) -> Iterator[Tensor]:
        o = self.options
        x0, cond, r = experience.x0, experience.conditioning, experience.optimality
        generator = lab.generator("timesteps", task)
        levels = torch.tensor(lab.sampler.schedule.sigmas[:-1])
        count = min(o.timesteps, len(levels))
        # Every picture gets its own random levels, without repetition.
        order = torch.rand(len(x0), len(levels), generator=generator).argsort(1)[:, :count]
        total = len(x0) * count
        noise = torch.randn(count, *x0.shape, generator=generator).to(x0.device)
        for k in range(count):
            sigma = levels[order[:, k]].to(x0.device)
            x_t = torch.lerp(x0, noise[k], sigma.view(-1, 1, 1, 1))
            for part in torch.arange(len(x0)).split(o.chunk):
                v = lab.velocity(cond[part], STUDENT)(x_t[part], sigma[part])
                with torch.no_grad():
                    v_old = lab.velocity(cond[part], OLD)(x_t[part], sigma[part])
                    v_base = lab.velocity(cond[part], None)(x_t[part], sigma[part]) if o.kl else v_old
                loss = policy_loss(v, v_old, x_t[part], x0[part], sigma[part], r[part], o.beta)
                penalty = (v - v_base).square().flatten(1).mean(1)
                yield (o.advantage_clip * loss + o.kl * penalty).sum() / total

    def after_update(self, lab: Lab) -> None:
        keep = OLD_DECAY[self.options.old_decay](lab.step + 1)
        adapters = lab.backbone.adapters
        torch._foreach_lerp_(adapters.parameters(OLD), adapters.parameters(STUDENT), 1 - keep)
