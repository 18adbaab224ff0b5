"""DanceOPD (arXiv 2606.27377): one teacher per update, one queried state per trajectory, plain velocity regression.

The student draws trajectories without gradients. On each trajectory one step is drawn from a Beta distribution that
favours low noise, and the student's velocity at that state is regressed onto the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.config.bounds import Fraction, Moderate
from bench.lazy import torch
from bench.sampler.draws import draw
from bench.sampler.rollout import rollout
from methods.distillation import DistillationMethod, DistillationOptions
from methods.targets import Outputs, error, matched_parts
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class DanceOptions(DistillationOptions):
    """Settings of DanceOPD; defaults as in its released code."""

    timestep_fraction: Fraction = 1.0
    """The first int(steps * timestep_fraction) states can be queried. 1, because the paper favours the last ones."""
    batches: Literal["mixed", "alternate"] = "alternate"
    low_noise: Moderate = 5.0
    """First parameter of the Beta distribution of queried steps; a larger value favours states with little noise."""
    high_noise: Moderate = 2.0
    """Second parameter: the position along the trajectory (1 is its end) is drawn from Beta(low_noise, high_noise)."""


@dataclass
class Queries:
    """One state [B, C, h, w] per trajectory, its sigma [B], the target at it and, with an anchor, the base's."""

    x: Tensor
    sigma: Tensor
    target: Outputs
    anchor: Tensor | None
    conditioning: Conditioning


class DanceOpd(DistillationMethod):
    """On-policy distillation at a single state per trajectory."""

    name = "dance_opd"
    title = "DanceOPD"
    source = "DanceOPD, arXiv 2606.27377"
    Options = DanceOptions

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """A full student rollout per trajectory, then one step of each network at the queried state."""
        o = DanceOptions.model_validate(spec.params)
        kept = 1 + matched_parts(o.matching) + bool(o.anchor)
        return cls.trajectory_work(spec, sampler, trained=1, teacher=1, rollout=sampler.steps, anchor=1, kept=kept)

    def collect(self, lab: Lab, task: str) -> Queries:
        """Roll out the student and query the teacher at one random state of each trajectory."""
        o = self.options
        conditioning = lab.encode(lab.prompts(task, o.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        student = lab.velocity(conditioning, STUDENT)
        kernel_noise = lab.generator("kernel", task)
        states = rollout(student, noise, lab.sampler, kernel_noise, keep=True).states
        steps = len(trained_steps(lab.sampler, o.timestep_fraction))
        query = lab.numpy_generator("query", task)

        def positions(count: int) -> Tensor:
            return torch.as_tensor(query.beta(o.low_noise, o.high_noise, count))

        # `draw` gives each process its rows of the whole batch's positions; the generator passed only carries the rows.
        along = draw(positions, len(noise), lab.generator("query", task))
        index = (along * steps).long().clamp_max(steps - 1)
        # `states` is a list over steps: take row i of the state that its step selects.
        x = torch.stack([states[k][i] for i, k in enumerate(index.tolist())])
        sigmas = torch.tensor(lab.sampler.schedule.sigmas, dtype=torch.float32)
        sigma = sigmas[index].to(x.device)
        target = self.target(lab, task, conditioning)
        target(x, sigma)
        return Queries(x, sigma, target.outputs, self.anchor(lab, conditioning, x, sigma), conditioning)

    def losses(self, lab: Lab, task: str, experience: Queries) -> Iterator[Tensor]:
        """Mean squared velocity error to the teacher, plus the weighted one to the base."""
        student = self.student(lab, experience.conditioning)
        v = student(experience.x, experience.sigma)
        loss = error(student.outputs, experience.target, 1.0)
        lab.note(f"kl/{task}", float(loss.detach().mean()))
        yield self.anchored(loss, v, experience.anchor).mean()
