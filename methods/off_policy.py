"""Off-policy distillation: analytic OPD's velocity matching, at states that the TEACHER visits.

The loss, teachers and budget are those of opd_analytic; only the trajectories differ. This is the off-policy row of
DanceOPD (arXiv 2606.27377) and the control that shows what training on-policy is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.sampler.rollout import walk
from bench.sampler.total import Total
from bench.sampler.weighting import Weighting, step_weights
from methods.distillation import DistillationMethod, DistillationOptions, squared_error
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class OffPolicyOptions(DistillationOptions):
    """Settings of off-policy distillation."""

    weighting: Weighting = "mean_matching"
    """Weights of the steps, as in opd_analytic."""


@dataclass
class Visits:
    """Per trained step, the states [B, C, h, w] of the teacher's trajectories and the teacher's velocities at them."""

    states: list[Tensor]
    targets: list[Tensor]
    conditioning: Conditioning


class OffPolicy(DistillationMethod):
    """Velocity matching on the teachers' trajectories."""

    name = "off_policy"
    source = "velocity matching on the teachers' trajectories (off-policy row of DanceOPD, arXiv 2606.27377)"
    Options = OffPolicyOptions

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """One teacher step and one student step with gradients per trained step; there is no separate rollout."""
        steps = len(trained_steps(sampler, spec.params["timestep_fraction"]))
        return cls.trajectory_work(spec, trained=steps, teacher=steps, anchor=steps, kept=2 * steps)

    def collect(self, lab: Lab, task: str) -> Visits:
        """Roll out the teacher up to the last trained step; its velocities along the way are the targets."""
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        teacher = lab.teacher(task, conditioning)
        steps = walk(teacher, noise, lab.sampler, lab.generator("kernel", task))
        trained = trained_steps(lab.sampler, self.options.timestep_fraction)
        states, targets = [], []
        # zip asks `trained` first, so the teacher is not called for a step beyond the last trained one.
        for _, (_, x, taken) in zip(trained, steps):
            states.append(x)
            targets.append(taken.velocity)
        return Visits(states, targets, conditioning)

    def losses(self, lab: Lab, task: str, experience: Visits) -> Iterator[Tensor]:
        """Weighted squared velocity error to the teacher, one piece per trained step."""
        o, conditioning, total = self.options, experience.conditioning, Total()
        weights = step_weights(lab.sampler, o.weighting)
        steps = trained_steps(lab.sampler, o.timestep_fraction)
        for k, x, target in zip(steps, experience.states, experience.targets):
            sigma = lab.sampler.schedule.sigmas[k]
            v = lab.velocity(conditioning, STUDENT)(x, sigma)
            error = weights[k] * squared_error(v, target)
            loss = self.anchored(error, lab, conditioning, x, sigma, v)
            piece = loss.mean() / len(steps)
            total.add(piece)
            yield piece
        lab.note(f"kl/{task}", float(total))
