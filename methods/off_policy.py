"""Off-policy distillation: analytic OPD's velocity matching, at states that the TEACHER visits.

The loss, teachers and budget are those of opd_analytic; only the trajectories differ. This is the off-policy row of
DanceOPD (arXiv 2606.27377) and the control that shows what training on-policy is worth. With a target other than the
teacher (methods/targets.py) the trajectories are the target's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bench.api.lab import Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.lazy import torch
from bench.sampler.rollout import walk
from bench.sampler.total import Total
from bench.sampler.weighting import Weighting, step_weights
from methods.distillation import DistillationMethod, DistillationOptions
from methods.targets import Outputs, error, matched_parts
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class OffPolicyOptions(DistillationOptions):
    """Settings of off-policy distillation."""

    unsaid: ClassVar[tuple[str, ...]] = ("self_normalise",)

    weighting: Weighting = "mean_matching"
    """Weights of the steps, as in opd_analytic."""
    self_normalise: bool = False
    """Divide the loss of every state by its mean absolute difference, as in opd_analytic."""


@dataclass
class Visits:
    """Per trained step, the states [B, C, h, w] of the target's trajectories and the target at them."""

    states: list[Tensor]
    targets: list[Outputs]
    conditioning: Conditioning


class OffPolicy(DistillationMethod):
    """Velocity matching on the teachers' trajectories."""

    name = "off_policy"
    title = "Off-policy distillation"
    source = "velocity matching on the teachers' trajectories (off-policy row of DanceOPD, arXiv 2606.27377)"
    Options = OffPolicyOptions

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """One teacher step and one student step with gradients per trained step; there is no separate rollout."""
        steps = len(trained_steps(sampler, spec.params["timestep_fraction"]))
        kept = (1 + matched_parts(OffPolicyOptions.model_validate(spec.params).matching)) * steps
        return cls.trajectory_work(spec, sampler, trained=steps, teacher=steps, anchor=steps, kept=kept)

    def collect(self, lab: Lab, task: str) -> Visits:
        """Roll out the target, by default the teacher, up to the last trained step."""
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        target = self.target(lab, task, conditioning)
        steps = walk(target, noise, lab.sampler, lab.generator("kernel", task))
        trained = trained_steps(lab.sampler, self.options.timestep_fraction)
        states, targets = [], []
        # zip asks `trained` first, so the target is not called for a step beyond the last trained one.
        for _, (_, x, _) in zip(trained, steps):
            states.append(x)
            targets.append(target.outputs)
        return Visits(states, targets, conditioning)

    def losses(self, lab: Lab, task: str, experience: Visits) -> Iterator[Tensor]:
        """Weighted squared velocity error to the teacher, one piece per trained step."""
        o, conditioning, total = self.options, experience.conditioning, Total()
        weights = step_weights(lab.sampler, o.weighting)
        steps = trained_steps(lab.sampler, o.timestep_fraction)
        for k, x, target in zip(steps, experience.states, experience.targets):
            sigma = lab.sampler.schedule.sigmas[k]
            student = self.student(lab, conditioning)
            v = student(x, sigma)
            with torch.no_grad():
                base = self.anchor(lab, conditioning, x, sigma)
            loss = error(student.outputs, target, weights[k], o.self_normalise)
            total.add(loss.mean() / len(steps))
            yield self.anchored(loss, v, base).mean() / len(steps)
        lab.note(f"kl/{task}", float(total))
