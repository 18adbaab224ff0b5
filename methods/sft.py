"""Supervised fine-tuning on images that the teachers sampled, by flow-matching regression.

The baseline of DiffusionOPD's ablation (arXiv 2605.15055, Fig. 5): the teachers are the same, but the student is
trained on re-noised teacher images, not on states of its own trajectories. With a target other than the teacher
(methods/targets.py) the images are the target's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.config.bounds import Count
from bench.lazy import torch
from bench.sampler.draws import draw, normal
from bench.sampler.rollout import rollout
from methods.distillation import DistillationMethod, DistillationOptions
from methods.targets import squared_error

if TYPE_CHECKING:
    from torch import Tensor


class SftOptions(DistillationOptions):
    """Settings of supervised fine-tuning on teacher samples."""

    levels: Count = 9
    """Noise levels per image and update, drawn uniformly from the rollout's schedule."""


@dataclass
class Pictures:
    """Clean latents [B, C, h, w] that the teacher sampled, and their prompts."""

    x0: Tensor
    conditioning: Conditioning


class Sft(DistillationMethod):
    """Flow matching on the teachers' samples."""

    name = "sft"
    title = "SFT on teachers' samples"
    source = "flow matching on the teachers' samples (DiffusionOPD, arXiv 2605.15055, Fig. 5)"
    Options = SftOptions
    matches_parts = False
    measures_distance = False  # the loss of a student that equals its teacher is not 0

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """A full teacher rollout per image, then one student pass with gradients per noise level."""
        levels = SftOptions.model_validate(spec.params).levels
        return cls.trajectory_work(spec, sampler, trained=levels, teacher=sampler.steps, anchor=levels)

    def collect(self, lab: Lab, task: str) -> Pictures:
        """Sample one image per prompt from the target, by default the teacher."""
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        target = self.target(lab, task, conditioning)
        trajectory = rollout(target, noise, lab.sampler, lab.generator("kernel", task))
        return Pictures(trajectory.final, conditioning)

    def losses(self, lab: Lab, task: str, experience: Pictures) -> Iterator[Tensor]:
        """Squared error of the student's velocity to eps - x0, one piece per noise level."""
        o, x0, conditioning = self.options, experience.x0, experience.conditioning
        generator = lab.generator("levels", task)
        sigmas = torch.tensor(lab.sampler.schedule.sigmas[:-1], dtype=torch.float32)

        def indices(count: int) -> Tensor:
            return torch.randint(len(sigmas), (count,), generator=generator)

        for _ in range(o.levels):
            index = draw(indices, len(x0), generator)
            sigma = sigmas[index].to(x0.device)
            noise = normal(x0.shape, generator, x0.device)
            x_t = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
            v = lab.velocity(conditioning, STUDENT)(x_t, sigma)
            with torch.no_grad():
                base = self.anchor(lab, conditioning, x_t, sigma)
            loss = self.anchored(squared_error(v, noise - x0), v, base)
            yield loss.mean() / o.levels
