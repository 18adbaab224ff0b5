"""PPO-style on-policy distillation: policy gradient on the per-step log-ratio to the teacher (Flow-OPD,
arXiv 2605.08063; the rival of the closed form in DiffusionOPD, arXiv 2605.15055, Sec. 4.3).

The student draws SDE trajectories. At every step the reward is how much more likely the teacher finds the drawn state
than the student does; the clipped surrogate raises the log-probability of rewarded draws. With the sampled log-ratio
the expected gradient is exactly the analytic one (weighting "kl", both as means over elements), with extra variance.
Draws must be kept whole before the loss, so a trajectory costs a rollout besides its training passes; steps without
noise (the last one of cps and ddim) have no density and are not trained, where analytic OPD matches means.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Needs, Work
from bench.backbones.conditioning import Conditioning
from bench.config.bounds import Count, Moderate
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.rollout import Trajectory, rollout
from bench.sampler.weighting import released_kl_factor
from methods.distillation import DistillationMethod, DistillationOptions
from methods.rl.grpo import surrogate
from methods.rl.ratios import Ratios
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor

RELEASED_CLIP = 5.0
"""Flow-OPD's bound on its advantages."""


class OpdPpoOptions(DistillationOptions):
    """Settings of PPO-style OPD."""

    advantage: Literal[
        "log_ratio", "log_ratio_centred", "state_kl_detached", "state_kl", "state_kl_no_dt", "return_to_go"
    ] = "log_ratio"
    """log_ratio: sampled, unbiased. log_ratio_centred: minus its mean at the state (the KL), the best baseline that a
    policy gradient could learn; unbiased, less noisy. state_kl_detached: minus the state's KL, a constant of the draw,
    expectation zero (Flow-OPD as printed). state_kl: the same with its gradient, the analytic gradient plus noise.
    state_kl_no_dt: Flow-OPD's released code, which on flow_sde takes the variance without h, so that its KL is h times
    the true one, and clips it to 5. (It also multiplies every picture's ratio with the mean advantage of the batch, by
    an accident of shapes that is not followed.) return_to_go: sum of log-ratios from this step on, which adds the
    effect on later states."""
    clip: Moderate = 1e-4
    inner_updates: Count = 1
    """Optimiser steps on the same trajectories; beyond the first the ratio to the old policy is clipped."""


@dataclass
class Experience:
    """Trajectories of the old policy [B, ...] with the teacher's velocities at the visited states."""

    trajectory: Trajectory
    conditioning: Conditioning
    teacher: list[Tensor]


class OpdPpo(DistillationMethod):
    name = "opd_ppo"
    source = "Flow-OPD, arXiv 2605.08063; DiffusionOPD, arXiv 2605.15055, Eq. 16-21"
    needs = Needs(teachers=True, stochastic=True)
    Options = OpdPpoOptions

    @property
    def inner_updates(self) -> int:
        return self.options.inner_updates

    @classmethod
    def work(cls, spec, sampler) -> Work:
        o = OpdPpoOptions.model_validate(spec.params)
        steps = len(trained_steps(sampler, o.timestep_fraction, noisy=True))
        trained, kept = steps * o.inner_updates, 2 * sampler.steps + 1 + steps
        return cls.trajectory_work(spec, trained, steps, rollout=sampler.steps, anchor=trained, kept=kept)

    def collect(self, lab: Lab, task: str) -> Experience:
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        field = lab.velocity(conditioning, STUDENT)
        trajectory = rollout(field, noise, lab.sampler, lab.generator("kernel", task), keep=True)
        teacher = lab.teacher(task, conditioning)
        sigmas = lab.sampler.schedule.sigmas
        steps = trained_steps(lab.sampler, self.options.timestep_fraction, noisy=True)
        return Experience(trajectory, conditioning, [teacher(trajectory.states[k], sigmas[k]) for k in steps])

    def losses(self, lab: Lab, task: str, experience: Experience) -> Iterator[Tensor]:
        o, trajectory = self.options, experience.trajectory
        steps = trained_steps(lab.sampler, o.timestep_fraction, noisy=True)
        at = [lab.sampler.coefficients[k] for k in steps]
        states = [trajectory.states[k] for k in steps]
        drawn = [trajectory.states[k + 1] for k in steps]
        old = [Transition(x, trajectory.velocities[k], a) for x, k, a in zip(states, steps, at)]
        guide = [Transition(x, v, a) for x, v, a in zip(states, experience.teacher, at)]
        to_go = sum(q.log_prob(y) - p.log_prob(y) for p, q, y in zip(old, guide, drawn))
        assert not isinstance(to_go, int)  # at least one step is trained
        ratios, total = Ratios(o.clip), 0.0
        for i, k in enumerate(steps):
            v = lab.velocity(experience.conditioning, STUDENT)(states[i], lab.sampler.schedule.sigmas[k])
            new = Transition(states[i], v, at[i])
            log_ratio = mean_log_ratio(new, old[i], drawn[i])
            ratios.add(log_ratio)
            released = released_kl_factor(lab.sampler, k)
            advantage = advantages(new, old[i], guide[i], drawn[i], o.advantage, to_go, released)
            loss = surrogate(log_ratio, advantage, o.clip)
            to_go = to_go - (guide[i].log_prob(drawn[i]) - old[i].log_prob(drawn[i]))
            total += float(new.kl(guide[i]).detach().mean()) / v[0].numel() / len(steps)
            loss = self.anchored(loss, lab, experience.conditioning, states[i], lab.sampler.schedule.sigmas[k], v)
            yield loss.mean() / len(steps)
        ratios.note(lab, task, 1 / (len(steps) * len(experience.conditioning)))
        lab.note(f"kl/{task}", total)


def mean_log_ratio(new: Gaussian, old: Gaussian, drawn: Tensor) -> Tensor:
    """Log-ratio of the student's policies at states `drawn` from `old`, [B], a mean over elements."""
    return (new.log_prob(drawn) - old.log_prob(drawn)) / drawn[0].numel()


def advantages(
    new: Gaussian, old: Gaussian, guide: Gaussian, drawn: Tensor, kind: str, to_go: Tensor, released: float = 1.0
) -> Tensor:
    """The advantage [B] of states `drawn` from `old`; the teacher's transition is `guide`.

    Scaled so that at new = old the expected gradient of the log-ratios and "state_kl" is that of KL(new || guide) as a
    mean over elements: the policy's log-probability is a mean over elements, the sampled reward a sum. `released` is
    the KL of this step in released code over the true one.
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
    return minus_kl.detach() if kind == "state_kl_detached" else minus_kl


def ppo_loss(
    new: Gaussian, old: Gaussian, guide: Gaussian, drawn: Tensor, kind: str, clip: float, to_go: Tensor
) -> Tensor:
    """Clipped loss of one step, [B], for states `drawn` from `old`."""
    return surrogate(mean_log_ratio(new, old, drawn), advantages(new, old, guide, drawn, kind, to_go), clip)
