"""Off-policy distillation: the velocity match of analytic OPD at states that the TEACHER visits.

The same loss, teachers and budget as opd_analytic; only whose trajectories are trained on differs. It is the off-policy
row of DanceOPD (arXiv 2606.27377) and what "on-policy" must be worth something against.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.sampler.rollout import walk
from bench.sampler.weighting import Weighting, step_weights
from methods.distillation import DistillationMethod, DistillationOptions, squared_error
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class OffPolicyOptions(DistillationOptions):
    """Settings of off-policy distillation."""

    weighting: Weighting = "mean_matching"
    """As in opd_analytic."""


@dataclass
class Visits:
    """States of the teachers' trajectories [B, C, h, w], one a trained step, and the teacher's velocities there."""

    states: list[Tensor]
    targets: list[Tensor]
    conditioning: Conditioning


class OffPolicy(DistillationMethod):
    name = "off_policy"
    source = "velocity matching on the teachers' trajectories (off-policy row of DanceOPD, arXiv 2606.27377)"
    Options = OffPolicyOptions

    @classmethod
    def work(cls, spec, sampler) -> Work:
        steps = len(trained_steps(sampler, spec.params["timestep_fraction"]))
        return cls.trajectory_work(spec, trained=steps, teacher=steps, anchor=steps, kept=2 * steps)

    def collect(self, lab: Lab, task: str) -> Visits:
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        steps = walk(lab.teacher(task, conditioning), noise, lab.sampler, lab.generator("kernel", task))
        trained = trained_steps(lab.sampler, self.options.timestep_fraction)
        visited = [(x, taken.velocity) for _, (_, x, taken) in zip(trained, steps)]
        return Visits([x for x, _ in visited], [v for _, v in visited], conditioning)

    def losses(self, lab: Lab, task: str, experience: Visits) -> Iterator[Tensor]:
        o, conditioning, total = self.options, experience.conditioning, 0.0
        weights = step_weights(lab.sampler, o.weighting)
        steps = trained_steps(lab.sampler, o.timestep_fraction)
        for k, x, target in zip(steps, experience.states, experience.targets):
            sigma = lab.sampler.schedule.sigmas[k]
            v = lab.velocity(conditioning, STUDENT)(x, sigma)
            loss = self.anchored(weights[k] * squared_error(v, target), lab, conditioning, x, sigma, v)
            piece = loss.mean() / len(steps)
            total += float(piece.detach())
            yield piece
        lab.note(f"kl/{task}", total)
