"""Flow-GRPO (arXiv 2505.05470): clipped policy gradient on the per-step log-probabilities of an SDE sampler.

Log-probabilities are those of the kernel's Gaussian, as a mean over elements. Flow-CPS and the released fast presets
take minus the mean squared distance to the mean instead, without 2 std^2 (`log_prob` squared_error). A clip range
belongs to one of the two.

Two things of the released script are not followed: pictures whose advantage is exactly 0 stay in the means here (there
they are masked, so that the others count more, and the penalty less), and inner updates split the batch by prompts
(there by shuffled pictures).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Options
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count, Fraction, Moderate, Weight
from bench.errors import UsageError
from bench.lazy import torch
from bench.sampler.distance import squared_distance
from bench.sampler.draws import Rows
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.rollout import Sampler, Trajectory, rollout
from bench.sampler.weighting import released_kl_factor
from methods.rl.engine import Engine, Samples
from methods.rl.ratios import Ratios
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class GrpoOptions(Options):
    """Settings of Flow-GRPO; defaults as in the released SD3.5-M GenEval configuration."""

    unsaid: ClassVar[tuple[str, ...]] = ("log_prob",)

    clip: Moderate = 1e-4
    """The ratio is clipped to 1 +- this (log-probabilities are means over elements)."""
    log_prob: Literal["gaussian", "squared_error"] = "gaussian"
    """Log-probability of a drawn state x' with mean m, a mean over elements. gaussian: the kernel's density.
    squared_error: -(x' - m)^2, as released code has it for Flow-CPS (arXiv 2509.05952) and fast presets (clip 1e-5)."""
    advantage_clip: Moderate = 5.0
    kl: Weight = 0.04
    """Weight of the per-step KL to the reference, a mean over elements, as released code takes it: on flow_sde h times
    the true one."""
    timestep_fraction: Fraction = 0.99
    """The first int(steps * this) steps are trained."""
    inner_updates: Count = 1
    """Optimiser steps on the same trajectories, each on its share of the prompts (published: 2)."""
    chunk: Count = 96
    """Latents per forward in training."""


def inner_rows(count: int, rows: Rows | None, inner_updates: int, inner: int) -> tuple[Tensor, int]:
    """This process's rows among `count` that inner update `inner` trains on, and how many rows all processes train.

    Each inner update sees its own share of the whole batch's prompts, which lie group after group; a process may have
    none of them.
    """
    rows = rows or Rows(0, count, count)
    each = count // (rows.stop - rows.start)  # pictures a prompt, or single rows
    start, stop = (part * rows.whole // inner_updates for part in (inner, inner + 1))
    first, last = max(start, rows.start) - rows.start, min(stop, rows.stop) - rows.start
    return torch.arange(first * each, max(first, last) * each), (stop - start) * each


def surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped loss [B]: max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r = exp(log_ratio)."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


class Grpo(Engine):
    name = "grpo"
    Options = GrpoOptions
    source = "Flow-GRPO, arXiv 2505.05470, Eq. 5"

    def check(self, sampler: Sampler, groups: int) -> None:
        o, section = self.options, f"params.{self.name}"
        if not sampler.stochastic:
            raise UsageError(
                f"engine {self.name!r} needs a stochastic kernel: set sampler.kernel (flow_sde, cps, ...) "
                "and sampler.eta > 0"
            )
        if not self.trained(sampler):
            raise UsageError(
                f"{section}.timestep_fraction {o.timestep_fraction:g} of {sampler.steps} steps trains no step"
            )
        if groups % o.inner_updates:
            raise UsageError(
                f"params.groups {groups} cannot be shared among {o.inner_updates} updates ({section}.inner_updates)"
            )

    def sample(self, lab: Lab, task: str, conditioning: Conditioning) -> Trajectory:
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        field = lab.velocity(conditioning, STUDENT)
        return rollout(field, noise, lab.sampler, lab.generator("kernel", task), keep=True)

    def trained(self, sampler: Sampler) -> list[int]:
        """Indices of the trained steps: within the timestep fraction, and with noise (a density)."""
        return trained_steps(sampler, self.options.timestep_fraction, noisy=True)

    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        o, trajectory = self.options, samples.trajectory
        steps = self.trained(lab.sampler)
        mine, whole = inner_rows(len(trajectory.final), lab.rows.get(task), o.inner_updates, lab.inner)
        scale = 1 / (whole * len(steps) * lab.shard_fraction(task))  # the loop multiplies by it again
        ratios = Ratios(o.clip)
        advantage = samples.advantages.clamp(-o.advantage_clip, o.advantage_clip)
        for k in steps:
            at, sigma = lab.sampler.coefficients[k], lab.sampler.schedule.sigmas[k]
            for part in mine.split(o.chunk) if len(mine) else ():
                x, cond = trajectory.states[k][part], samples.conditioning[part]
                new = Transition(x, lab.velocity(cond, STUDENT)(x, sigma), at)
                old = Transition(x, trajectory.velocities[k][part], at)
                drawn = trajectory.states[k + 1][part]
                log_ratio = self.log_ratio(new, old, drawn)
                ratios.add(log_ratio)
                loss = self.policy(log_ratio, advantage[part], lab.sampler.schedule.h(k))
                if o.kl:
                    with torch.no_grad():
                        anchor = Transition(x, lab.velocity(cond, reference)(x, sigma), at)
                    loss = loss + o.kl * released_kl_factor(lab.sampler, k) * new.kl(anchor) / x[0].numel()
                yield loss.sum() * scale
        ratios.note(lab, task, scale)

    def log_ratio(self, new: Gaussian, old: Gaussian, drawn: Tensor) -> Tensor:
        """Log-ratio [B] of one step's policies at the drawn states, a mean over elements as in the released code."""
        if self.options.log_prob == "squared_error":
            gap = squared_distance(drawn, old.mean) - squared_distance(drawn, new.mean)
        else:
            gap = new.log_prob(drawn) - old.log_prob(drawn)
        return gap / drawn[0].numel()

    def policy(self, log_ratio: Tensor, advantage: Tensor, h: float) -> Tensor:
        """Clipped loss [B] of one step of length h."""
        return surrogate(log_ratio, advantage, self.options.clip)

    def passes(self, sampler: Sampler) -> Passes:
        steps = len(self.trained(sampler))
        return Passes(forward=sampler.steps + (steps if self.options.kl else 0), trained=steps)

    def kept(self, sampler: Sampler) -> int:
        return 2 * sampler.steps + 1  # states and velocities
