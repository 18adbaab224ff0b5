"""PPO-style on-policy distillation: policy gradient on the per-step log-ratio to the teacher (Flow-OPD,
arXiv 2605.08063; the rival of the closed form in DiffusionOPD, arXiv 2605.15055, Sec. 4.3).

The student draws SDE trajectories. At every step the reward is how much more likely the teacher finds the drawn state
than the student does; the clipped surrogate raises the log-probability of rewarded draws. With the sampled log-ratio
the expected gradient is exactly the analytic one (weighting "kl", both as means over elements), with extra variance.
Draws must be kept whole before the loss, so a trajectory costs a rollout besides its training passes; steps without
noise (the last one of flow_sde and cps) have no density and are not trained, where analytic OPD matches means.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.lab import STUDENT, Lab
from bench.method import Needs
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.rollout import Trajectory, rollout
from methods.distillation import DistillationMethod, DistillationOptions
from methods.rl.grpo import surrogate
from methods.trained_steps import trained_steps


class OpdPpoOptions(DistillationOptions):
    """Settings of PPO-style OPD."""

    advantage: Literal["log_ratio", "log_ratio_centred", "state_kl_detached", "state_kl", "return_to_go"] = "log_ratio"
    """log_ratio: sampled, unbiased. log_ratio_centred: minus its mean at the state (the KL), the best baseline that a
    policy gradient could learn; unbiased, less noisy. state_kl_detached: minus the state's KL, a constant of the draw,
    expectation zero (Flow-OPD as printed). state_kl: the same with its gradient, the analytic gradient plus noise
    (Flow-OPD's code). return_to_go: sum of log-ratios from this step on, which adds the effect on later states."""
    clip: Annotated[float, Field(gt=0)] = 1e-4
    inner_updates: Annotated[int, Field(gt=0)] = 1
    """Optimiser steps on the same trajectories; beyond the first the ratio to the old policy is clipped."""


@dataclass
class Draws:
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
    def predict(cls, spec, sampler) -> int:
        o = OpdPpoOptions.model_validate(spec.params)
        steps = len(trained_steps(sampler, o.timestep_fraction, noisy=True))
        return cls.trajectory_cost(spec, sampler.steps + 3 * steps * o.inner_updates, steps, steps * o.inner_updates)

    def collect(self, lab: Lab, task: str) -> Draws:
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        field = lab.velocity(conditioning, STUDENT)
        trajectory = rollout(field, noise, lab.sampler, lab.generator("kernel", task), keep=True)
        teacher = lab.teacher(task, conditioning)
        sigmas = lab.sampler.schedule.sigmas
        steps = trained_steps(lab.sampler, self.options.timestep_fraction, noisy=True)
        return Draws(trajectory, conditioning, [teacher(trajectory.states[k], sigmas[k]) for k in steps])

    def losses(self, lab: Lab, task: str, experience: Draws) -> Iterator[Tensor]:
        o, trajectory = self.options, experience.trajectory
        steps = trained_steps(lab.sampler, o.timestep_fraction, noisy=True)
        at = [lab.sampler.coefficients[k] for k in steps]
        states = [trajectory.states[k] for k in steps]
        drawn = [trajectory.states[k + 1] for k in steps]
        old = [Transition(x, trajectory.velocities[k], a) for x, k, a in zip(states, steps, at)]
        guide = [Transition(x, v, a) for x, v, a in zip(states, experience.teacher, at)]
        to_go = sum(q.log_prob(y) - p.log_prob(y) for p, q, y in zip(old, guide, drawn))
        total = 0.0
        for i, k in enumerate(steps):
            v = lab.velocity(experience.conditioning, STUDENT)(states[i], lab.sampler.schedule.sigmas[k])
            new = Transition(states[i], v, at[i])
            loss = ppo_loss(new, old[i], guide[i], drawn[i], o.advantage, o.clip, to_go)
            to_go = to_go - (guide[i].log_prob(drawn[i]) - old[i].log_prob(drawn[i]))
            total += float(new.kl(guide[i]).detach().mean()) / v[0].numel() / len(steps)
            loss = self.anchored(loss, lab, experience.conditioning, states[i], lab.sampler.schedule.sigmas[k], v)
            yield loss.mean() / len(steps)
        lab.note(f"kl/{task}", total)


def ppo_loss(
    new: Gaussian, old: Gaussian, guide: Gaussian, drawn: Tensor, kind: str, clip: float, to_go: Tensor
) -> Tensor:
    """Clipped loss of one step, [B], for states `drawn` from `old`; the teacher's transition is `guide`.

    Scaled so that at new = old the expected gradient of the log-ratios and "state_kl" is that of KL(new || guide) as a
    mean over elements: the policy's log-probability is a mean over elements, the sampled reward a sum.
    """
    size = drawn[0].numel()
    log_ratio = (new.log_prob(drawn) - old.log_prob(drawn)) / size
    if kind == "log_ratio":
        advantage = guide.log_prob(drawn) - old.log_prob(drawn)
    elif kind == "log_ratio_centred":
        advantage = guide.log_prob(drawn) - old.log_prob(drawn) + old.kl(guide)
    elif kind == "return_to_go":
        advantage = to_go
    else:
        advantage = -new.kl(guide) / size
        advantage = advantage.detach() if kind == "state_kl_detached" else advantage
    return surrogate(log_ratio, advantage, clip)
