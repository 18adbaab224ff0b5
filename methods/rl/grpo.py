"""Flow-GRPO (arXiv 2505.05470): clipped policy gradient on the per-step log-probabilities of an SDE sampler.

Log-probabilities are those of the kernel's Gaussian, as means over elements. Flow-CPS and the released fast presets
instead use minus the mean squared distance to the mean, without the factor 1 / (2 std^2) (`log_prob` squared_error).
The two need different clip ranges.

Two details of the released script are not reproduced. It masks images whose advantage is exactly 0, so that the others
count more and the penalty counts less; here they stay in the means. Its inner updates split the batch into shuffled
images; here they split it by prompts.
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
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.parts import parts
from bench.sampler.rollout import Sampler, Trajectory, rollout
from bench.sampler.weighting import released_kl_factor
from methods.rl.engine import Batch, Engine, Samples
from methods.rl.inner_updates import inner_rows
from methods.rl.ratios import Ratios, beyond, kl_between
from methods.rl.windows import WindowOptions, check_window, windowed
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class TrajectoryOptions(Options):
    """Settings of every engine on trajectories; defaults as in Flow-GRPO's released SD3.5-M GenEval configuration."""

    unsaid: ClassVar[tuple[str, ...]] = ("log_prob", "window")

    log_prob: Literal["gaussian", "squared_error"] = "gaussian"
    """Log-probability of a drawn state x' with mean m, as a mean over elements. gaussian: the kernel's density.
    squared_error: -(x' - m)^2, as in released code for Flow-CPS (arXiv 2509.05952) and fast presets (clip 1e-5)."""
    advantage_clip: Moderate = 5.0
    """Advantages are clipped to +- advantage_clip."""
    kl: Weight = 0.04
    """Weight of the per-step KL to the reference, as a mean over elements. It is the KL of released code, which on
    flow_sde is h times the true one."""
    timestep_fraction: Fraction = 0.99
    """The first int(steps * timestep_fraction) steps are trained, except steps without noise."""
    window: WindowOptions = WindowOptions()
    """Which of these steps have noise and are trained."""
    inner_updates: Count = 1
    """Optimiser steps per update, each on its own share of the prompts (published: 2)."""
    chunk: Count = 96
    """Latents per forward with gradients; it bounds memory."""


class GrpoOptions(TrajectoryOptions):
    """Settings of Flow-GRPO."""

    clip: Moderate = 1e-4
    """The ratio is clipped to 1 +- clip. It is small because log-probabilities are means over elements."""


def surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped loss [B]: max(-A r, -A clip(r, 1 - clip, 1 + clip)) with r = exp(log_ratio) and advantage A."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


class Grpo(Engine):
    """Clipped policy gradient on the steps of SDE trajectories."""

    name = "grpo"
    Options: ClassVar[type[TrajectoryOptions]] = GrpoOptions
    source = "Flow-GRPO, arXiv 2505.05470, Eq. 5"

    def check(self, sampler: Sampler, batch: Batch) -> None:
        """Also require a stochastic kernel and at least one trained step."""
        if not sampler.stochastic:
            raise UsageError(
                f"engine {self.name!r} needs a stochastic kernel: set sampler.kernel (flow_sde, cps, ...) "
                "and sampler.eta > 0"
            )
        if not self.trained(sampler):
            raise UsageError(
                f"params.{self.name}.timestep_fraction {self.options.timestep_fraction:g} of {sampler.steps} steps "
                "trains no step"
            )
        check_window(self.name, self.options.window, self.trained(sampler))
        super().check(sampler, batch)

    def start(self, lab: Lab, task: str, pictures: int, group_size: int) -> Tensor:
        """The noise from which images start, [pictures, C, h, w]."""
        return lab.backbone.noise(pictures, lab.generator("noise", task))

    def sample(self, lab: Lab, task: str, conditioning: Conditioning, group_size: int) -> Trajectory:
        """Roll out the student, keeping all states and velocities."""
        noise = self.start(lab, task, len(conditioning), group_size)
        field = lab.velocity(conditioning, STUDENT)
        return rollout(field, noise, self.sampler(lab, task), lab.generator("kernel", task), keep=True)

    def trained(self, sampler: Sampler) -> list[int]:
        """Indices of the steps within the timestep fraction that add noise and so have a density."""
        return trained_steps(sampler, self.options.timestep_fraction, noisy=True)

    def sampler(self, lab: Lab, task: str) -> Sampler:
        """The sampler of this update, with noise only in its window."""
        return windowed(lab, task, self.options.window, self.trained(lab.sampler))

    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """Eq. 5 with the KL penalty, one piece per trained step and chunk of this inner update's images."""
        o, trajectory = self.options, samples.trajectory
        sampler = self.sampler(lab, task)
        steps = self.trained(sampler)
        count, rows = len(trajectory.final), lab.rows.get(task)
        mine, whole = inner_rows(count, rows, o.inner_updates, lab.inner)
        # The training loop multiplies each process's loss by its shard fraction, which would be wrong here: an inner
        # update's prompts are not spread over the processes like the update's.
        scale = 1 / (whole * len(steps) * lab.shard_fraction(task))
        ratios = Ratios()
        advantage = samples.advantages.clamp(-o.advantage_clip, o.advantage_clip)
        for k in steps:
            at, sigma = sampler.coefficients[k], sampler.schedule.sigmas[k]
            for part in parts(mine, o.chunk):
                x, cond = trajectory.states[k][part], samples.conditioning[part]
                new = Transition(x, lab.velocity(cond, STUDENT)(x, sigma), at)
                # The velocities stored at sampling are the old policy's, even after the first inner update.
                old = Transition(x, trajectory.velocities[k][part], at)
                drawn = trajectory.states[k + 1][part]
                log_ratio = self.log_ratio(new, old, drawn)
                kl_old = kl_between(new, old)
                ratios.add(log_ratio, self.outside(log_ratio.detach(), advantage[part], kl_old), kl_old)
                loss = self.policy(log_ratio, advantage[part], kl_old, lab.sampler, k)
                if o.kl:
                    with torch.no_grad():
                        anchor = Transition(x, lab.velocity(cond, reference)(x, sigma), at)
                    factor = o.kl * released_kl_factor(lab.sampler, k)
                    loss = loss + factor * new.kl(anchor) / x[0].numel()
                yield loss.sum() * scale
        ratios.note(lab, task, scale)

    def log_ratio(self, new: Gaussian, old: Gaussian, drawn: Tensor) -> Tensor:
        """Log-ratio [B] of the new to the old policy at the drawn states of one step, as a mean over elements."""
        if self.options.log_prob == "squared_error":
            gap = squared_distance(drawn, old.mean) - squared_distance(drawn, new.mean)
        else:
            gap = new.log_prob(drawn) - old.log_prob(drawn)
        return gap / drawn[0].numel()

    def outside(self, log_ratio: Tensor, advantage: Tensor, kl_old: Tensor) -> Tensor:
        """Whether an image is outside the trust region around the old policy, [B]."""
        return beyond(log_ratio, self.options.clip)

    def policy(self, log_ratio: Tensor, advantage: Tensor, kl_old: Tensor, sampler: Sampler, k: int) -> Tensor:
        """Clipped loss [B] of step k of the sampler; `kl_old` [B] is the KL of the new to the old policy there."""
        return surrogate(log_ratio, advantage, self.options.clip)

    def passes(self, sampler: Sampler, batch: Batch) -> Passes:
        """A rollout, and per trained step a pass with gradients and, with a penalty, one of the reference."""
        steps = self.options.window.size or len(self.trained(sampler))
        forward = sampler.steps + (steps if self.options.kl else 0)
        return Passes(forward, trained=steps) * batch.passes * batch.pictures

    def kept(self, sampler: Sampler) -> int:
        """All states and velocities of the trajectory."""
        return 2 * sampler.steps + 1
