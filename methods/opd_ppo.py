"""PPO-style on-policy distillation: policy gradient on the per-step log-ratio to the teacher.

This is Flow-OPD (arXiv 2605.08063), which DiffusionOPD (arXiv 2605.15055, Sec. 4.3) compares with its closed form. The
student draws SDE trajectories. The reward of a step is the log-likelihood of the drawn state under the teacher minus
that under the student, and the clipped surrogate raises the log-probability of rewarded draws. With the sampled
log-ratio the expected gradient is exactly the analytic one (weighting "kl", both as means over elements), with extra
variance. The loss needs complete draws, so a trajectory costs a rollout in addition to its training passes. Steps
without noise (the last one of cps and ddim) have no density and are not trained; analytic OPD matches means there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Needs, Work
from bench.backbones.conditioning import Conditioning
from bench.config.bounds import Count, Moderate
from bench.lazy import torch
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.rollout import Trajectory, rollout
from bench.sampler.total import Total
from bench.sampler.weighting import released_kl_factor
from methods.distillation import DistillationMethod, DistillationOptions
from methods.rl.grpo import surrogate
from methods.rl.ratios import Ratios, beyond, kl_between
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor

RELEASED_CLIP = 5.0
"""Flow-OPD's released code clips its advantages to +- this."""


class OpdPpoOptions(DistillationOptions):
    """Settings of PPO-style OPD."""

    advantage: Literal[
        "log_ratio", "log_ratio_centred", "state_kl_detached", "state_kl", "state_kl_no_dt", "return_to_go"
    ] = "log_ratio"
    """Advantage of a drawn state.

    log_ratio: the sampled log-ratio of teacher to student; unbiased.
    log_ratio_centred: log_ratio minus its mean at the state (minus the KL), the best baseline that a policy gradient
    could learn; unbiased, with less variance.
    state_kl_detached: minus the KL at the state, as a constant. It does not depend on the draw, so the expected
    gradient is zero (Flow-OPD as printed).
    state_kl: the same with its gradient, which gives the analytic gradient plus noise.
    state_kl_no_dt: Flow-OPD's released code, which leaves h out of the variance on flow_sde, so that its KL is h times
    the true one, and clips the advantage to +-5. (That code also multiplies each image's ratio by the batch mean of the
    advantage, because of accidental broadcasting, which is not reproduced here.)
    return_to_go: the sum of log-ratios from this step on, which includes the effect on later states.
    """
    clip: Moderate = 1e-4
    """The ratio to the old policy is clipped to 1 +- clip."""
    inner_updates: Count = 1
    """Optimiser steps on the same trajectories. At the first the ratio is 1, so clipping acts from the second on."""


@dataclass
class Experience:
    """Trajectories of the old policy [B, ...], and the teacher's velocities at the trained steps' states."""

    trajectory: Trajectory
    conditioning: Conditioning
    teacher: list[Tensor]


class OpdPpo(DistillationMethod):
    """On-policy distillation with a clipped policy gradient."""

    name = "opd_ppo"
    title = "PPO-style OPD"
    source = "Flow-OPD, arXiv 2605.08063; DiffusionOPD, arXiv 2605.15055, Eq. 16-21"
    needs = Needs(teachers=True, stochastic=True)
    Options = OpdPpoOptions
    matches_parts = False

    @property
    def inner_updates(self) -> int:
        """Optimiser steps per update, from the setting of the same name."""
        return self.options.inner_updates

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """A full rollout with one teacher call per trained step; every inner update trains on all of them."""
        o = OpdPpoOptions.model_validate(spec.params)
        steps = len(trained_steps(sampler, o.timestep_fraction, noisy=True))
        trained = steps * o.inner_updates
        kept = 2 * sampler.steps + 1 + steps  # states, the student's velocities and the teacher's
        return cls.trajectory_work(spec, sampler, trained, steps, rollout=sampler.steps, anchor=trained, kept=kept)

    def collect(self, lab: Lab, task: str) -> Experience:
        """Roll out the student and query the teacher at the trained steps."""
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        field = lab.velocity(conditioning, STUDENT)
        trajectory = rollout(field, noise, lab.sampler, lab.generator("kernel", task), keep=True)
        target = self.target(lab, task, conditioning)
        sigmas = lab.sampler.schedule.sigmas
        steps = trained_steps(lab.sampler, self.options.timestep_fraction, noisy=True)
        velocities = [target(trajectory.states[k], sigmas[k]) for k in steps]
        return Experience(trajectory, conditioning, velocities)

    def losses(self, lab: Lab, task: str, experience: Experience) -> Iterator[Tensor]:
        """Clipped surrogate of DiffusionOPD Eq. 16-21, one piece per trained step."""
        o, trajectory, conditioning = self.options, experience.trajectory, experience.conditioning
        sigmas = lab.sampler.schedule.sigmas
        steps = trained_steps(lab.sampler, o.timestep_fraction, noisy=True)
        at = [lab.sampler.coefficients[k] for k in steps]
        states = [trajectory.states[k] for k in steps]
        drawn = [trajectory.states[k + 1] for k in steps]
        # The old policy's and the teacher's transitions are constants; only `new` below carries gradients.
        velocities = [trajectory.velocities[k] for k in steps]
        old = list(map(Transition, states, velocities, at))
        guide = list(map(Transition, states, experience.teacher, at))
        to_go = sum(q.log_prob(y) - p.log_prob(y) for p, q, y in zip(old, guide, drawn))
        assert not isinstance(to_go, int)  # at least one step is trained
        ratios, total = Ratios(), Total()
        for i, k in enumerate(steps):
            x, y = states[i], drawn[i]
            v = lab.velocity(conditioning, STUDENT)(x, sigmas[k])
            new = Transition(x, v, at[i])
            log_ratio = mean_log_ratio(new, old[i], y)
            ratios.add(log_ratio, beyond(log_ratio, o.clip), kl_between(new, old[i]))
            released = released_kl_factor(lab.sampler, k)
            advantage = advantages(new, old[i], guide[i], y, o.advantage, to_go, released)
            loss = surrogate(log_ratio, advantage, o.clip)
            # From the next step on, this step's log-ratio no longer belongs to the return.
            to_go = to_go - (guide[i].log_prob(y) - old[i].log_prob(y))
            total.add(new.kl(guide[i]).mean() / v[0].numel() / len(steps))
            with torch.no_grad():
                base = self.anchor(lab, conditioning, x, sigmas[k])
            loss = self.anchored(loss, v, base)
            yield loss.mean() / len(steps)
        ratios.note(lab, task, 1 / (len(steps) * len(conditioning)))
        lab.note(f"kl/{task}", float(total))


def mean_log_ratio(new: Gaussian, old: Gaussian, drawn: Tensor) -> Tensor:
    """Log-ratio of the new to the old policy at states `drawn` from `old`, [B], as a mean over elements."""
    return (new.log_prob(drawn) - old.log_prob(drawn)) / drawn[0].numel()


def advantages(
    new: Gaussian, old: Gaussian, guide: Gaussian, drawn: Tensor, kind: str, to_go: Tensor, released: float = 1.0
) -> Tensor:
    """The advantage [B] of states `drawn` from `old`; the teacher's transition is `guide`.

    The scale is such that, at new = old, "log_ratio", "log_ratio_centred" and "state_kl" have the expected gradient of
    KL(new || guide) as a mean over elements. To that end log-ratios are sums over elements, since the policy's
    log-probability is already a mean. `released` is this step's KL in released code over the true one.
    """
    if kind == "log_ratio":
        return guide.log_prob(drawn) - old.log_prob(drawn)
    if kind == "log_ratio_centred":
        return guide.log_prob(drawn) - old.log_prob(drawn) + old.kl(guide)
    if kind == "return_to_go":
        return to_go
    minus_kl = -new.kl(guide) / drawn[0].numel()
    if kind == "state_kl_no_dt":
        return (released * minus_kl).clamp(-RELEASED_CLIP, RELEASED_CLIP)
    if kind == "state_kl_detached":
        return minus_kl.detach()
    return minus_kl


def ppo_loss(
    new: Gaussian, old: Gaussian, guide: Gaussian, drawn: Tensor, kind: str, clip: float, to_go: Tensor
) -> Tensor:
    """Clipped loss of one step, [B], for states `drawn` from `old`."""
    advantage = advantages(new, old, guide, drawn, kind, to_go)
    return surrogate(mean_log_ratio(new, old, drawn), advantage, clip)
