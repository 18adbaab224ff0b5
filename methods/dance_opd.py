"""DanceOPD (arXiv 2606.27377): one teacher an update, one queried state a trajectory, plain velocity regression.

The student rolls out without gradients; a single step, drawn from a Beta distribution that favours low noise, is
where its velocity is matched to the teacher's.
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
from methods.distillation import DistillationMethod, DistillationOptions, squared_error
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class DanceOptions(DistillationOptions):
    """Settings of DanceOPD; defaults as in its released code."""

    timestep_fraction: Fraction = 1.0
    """States at the first int(steps * this) steps are queried; the last one is among those that the paper favours."""
    batches: Literal["mixed", "alternate"] = "alternate"
    low_noise: Moderate = 5.0
    high_noise: Moderate = 2.0
    """The queried step is Beta(low_noise, high_noise) along the trajectory, 1 being its end."""


@dataclass
class Queries:
    """One state [B, C, h, w] a trajectory, its sigma [B], and the teacher's velocity there."""

    x: Tensor
    sigma: Tensor
    target: Tensor
    anchor: Tensor
    conditioning: Conditioning


class DanceOpd(DistillationMethod):
    name = "dance_opd"
    source = "DanceOPD, arXiv 2606.27377"
    Options = DanceOptions

    @classmethod
    def work(cls, spec, sampler) -> Work:
        return cls.trajectory_work(spec, trained=1, teacher=1, rollout=sampler.steps, anchor=1, kept=3)

    def collect(self, lab: Lab, task: str) -> Queries:
        o = self.options
        conditioning = lab.encode(lab.prompts(task, o.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        student = lab.velocity(conditioning, STUDENT)
        states = rollout(student, noise, lab.sampler, lab.generator("kernel", task), keep=True).states
        steps = len(trained_steps(lab.sampler, o.timestep_fraction))
        query = lab.numpy_generator("query", task)
        beta = lambda n: torch.as_tensor(query.beta(o.low_noise, o.high_noise, n))  # noqa: E731
        along = draw(beta, len(noise), lab.generator("query", task))
        index = (along * steps).long().clamp_max(steps - 1)
        x = torch.stack([states[k][i] for i, k in enumerate(index.tolist())])
        sigma = torch.tensor(lab.sampler.schedule.sigmas, dtype=torch.float32)[index].to(x.device)
        return Queries(x, sigma, *self.targets(lab, task, conditioning, x, sigma), conditioning)

    def losses(self, lab: Lab, task: str, experience: Queries) -> Iterator[Tensor]:
        v = lab.velocity(experience.conditioning, STUDENT)(experience.x, experience.sigma)
        loss = squared_error(v, experience.target).mean()
        lab.note(f"kl/{task}", float(loss.detach()))
        yield loss + self.options.anchor * squared_error(v, experience.anchor).mean()
