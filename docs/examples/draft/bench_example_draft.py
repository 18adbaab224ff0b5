"""DRaFT (arXiv 2309.17400): the reward's gradient goes back through the decoder and the last steps of the sampler."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.api.lab import STUDENT, Lab
from bench.api.method import Method, Options, Work
from bench.api.task import Prompt, Scores, Task
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.errors import UsageError
from bench.sampler.draws import normal

SHAPES = {"train": ("circle", "square", "star"), "validation": ("ring",), "test": ("cross", "triangle")}


class Brightness(Task):
    """Reward: bright pictures. Its gradient is known, so that methods may use it."""

    name = "brightness"
    version = "1"
    headline = "reward"

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(f"a photo of a {shape}") for shape in SHAPES[split]]

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        return images_BCHW.mean((1, 2, 3))

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        found = self.differentiable_reward(images_BCHW, prompts).double().cpu().numpy()
        return Scores(found, {"brightness": np.asarray(found)})


class DraftOptions(Options):
    """Settings of DRaFT-K."""

    trajectories: int = 8
    """Trajectories of a task in one update."""
    last: int = 1
    """Steps at the end that gradients go through: the K of DRaFT-K."""


@dataclass
class Start:
    """Where the trajectories begin, and what they are of."""

    noise: Tensor
    prompts: list[Prompt]
    conditioning: Conditioning


class Draft(Method):
    """Minimises minus the reward of the student's own pictures."""

    name = "draft"
    source = "DRaFT-K, arXiv 2309.17400, Alg. 1"
    Options = DraftOptions
    lowers_memory = ("trajectories", "last")

    @classmethod
    def check(cls, spec, sampler) -> None:
        super().check(spec, sampler)
        if not 1 <= spec.params["last"] <= sampler.steps:
            raise UsageError(f"params.last must lie between 1 and sampler.steps {sampler.steps}")
        if any(at.d for at in sampler.coefficients):
            raise UsageError(f"method {cls.name!r} takes one-step kernels, not {sampler.kernel.name!r}")

    @classmethod
    def predict(cls, spec, sampler) -> int:
        return cls.work(spec, sampler).passes.nfe

    @classmethod
    def work(cls, spec, sampler) -> Work:
        pictures, last = spec.params["trajectories"] * len(spec.tasks), spec.params["last"]
        branches = 1 if spec.sampler.guidance == 1 else 2
        passes = Passes(forward=pictures * (sampler.steps - last) * branches, trained=pictures * last * branches)
        drawn = spec.params["trajectories"]
        return Work(passes, drawn=drawn, trained_at_once=drawn * last, pictures=pictures)

    def collect(self, lab: Lab, task: str) -> Start:
        prompts = lab.prompts(task, self.options.trajectories)
        return Start(lab.backbone.noise(len(prompts), lab.generator("noise", task)), prompts, lab.encode(prompts))

    def losses(self, lab: Lab, task: str, experience: Start) -> Iterator[Tensor]:
        velocity, first = lab.velocity(experience.conditioning, STUDENT), lab.sampler.steps - self.options.last
        x, generator = experience.noise, lab.generator("kernel", task)
        for k, (sigma, at) in enumerate(zip(lab.sampler.schedule.sigmas, lab.sampler.coefficients)):
            with torch.set_grad_enabled(k >= first):
                x = at.a * x + at.b * velocity(x, sigma)
                if at.c:
                    x = x + at.c * normal(x.shape, generator).to(x.device)
        rewards = lab.differentiable_reward(task, x, experience.prompts)
        lab.note(f"reward/{task}", float(rewards.detach().mean()))
        yield -rewards.mean()
