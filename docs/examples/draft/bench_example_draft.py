"""DRaFT (arXiv 2309.17400): backpropagate the reward through the decoder and the last steps of the sampler."""

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
    """Reward: the mean brightness of an image. It has a gradient that methods can use."""

    name = "brightness"
    version = "1"
    headline = "reward"

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of a split, one per shape."""
        return [Prompt(f"a photo of a {shape}") for shape in SHAPES[split]]

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """Mean pixel value [B] of images [B, 3, H, W] in [0, 1]."""
        return images_BCHW.mean((1, 2, 3))

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The same reward without gradients, also as the metric "brightness"."""
        found = self.differentiable_reward(images_BCHW, prompts).double().cpu().numpy()
        return Scores(found, {"brightness": np.asarray(found)})


class DraftOptions(Options):
    """Settings of DRaFT-K."""

    trajectories: int = 8
    """Trajectories per task and update."""
    last: int = 1
    """K of DRaFT-K: the number of final steps through which gradients flow."""


@dataclass
class Start:
    """Initial noise [B, C, h, w] of the trajectories, and their prompts."""

    noise: Tensor
    prompts: list[Prompt]
    conditioning: Conditioning


class Draft(Method):
    """Maximise the reward of the student's own samples by its gradient."""

    name = "draft"
    source = "DRaFT-K, arXiv 2309.17400, Alg. 1"
    Options = DraftOptions
    lowers_memory = ("trajectories", "last")

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also require a valid K, and a one-step kernel, as the sampler loop below keeps no earlier velocity."""
        super().check(spec, sampler)
        if not 1 <= spec.params["last"] <= sampler.steps:
            raise UsageError(f"params.last {spec.params['last']} must be from 1 to sampler.steps, {sampler.steps}")
        if any(at.d for at in sampler.coefficients):
            kernel = sampler.kernel.name
            raise UsageError(f"method {cls.name!r} needs a one-step kernel, not {kernel!r}: set sampler.kernel")

    @classmethod
    def predict(cls, spec, sampler) -> int:
        """NFE of one update, from `work`."""
        return cls.work(spec, sampler).passes.nfe

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """The last K steps of every trajectory run with gradients, the others without."""
        drawn, last = spec.params["trajectories"], spec.params["last"]
        pictures = drawn * len(spec.tasks)
        branches = 1 if spec.sampler.guidance == 1 else 2
        per_step = pictures * branches
        passes = Passes(forward=per_step * (sampler.steps - last), trained=per_step * last)
        return Work(passes, drawn=drawn, trained_at_once=drawn * last, pictures=pictures)

    def collect(self, lab: Lab, task: str) -> Start:
        """Draw prompts and initial noise; the trajectories themselves need gradients, so `losses` rolls them out."""
        prompts = lab.prompts(task, self.options.trajectories)
        noise = lab.backbone.noise(len(prompts), lab.generator("noise", task))
        return Start(noise, prompts, lab.encode(prompts))

    def losses(self, lab: Lab, task: str, experience: Start) -> Iterator[Tensor]:
        """Minus the mean reward, in a single piece, because its graph spans the last K steps."""
        velocity = lab.velocity(experience.conditioning, STUDENT)
        first = lab.sampler.steps - self.options.last
        x, generator = experience.noise, lab.generator("kernel", task)
        # The kernel's step is x' = a x + b v + c z.
        steps = zip(lab.sampler.schedule.sigmas, lab.sampler.coefficients)
        for k, (sigma, at) in enumerate(steps):
            # Without gradients in the early steps no graph is kept for them (truncation to the last K steps).
            with torch.set_grad_enabled(k >= first):
                x = at.a * x + at.b * velocity(x, sigma)
                if at.c:
                    x = x + at.c * normal(x.shape, generator, x.device)
        rewards = lab.differentiable_reward(task, x, experience.prompts)
        lab.note(f"reward/{task}", float(rewards.detach().mean()))
        yield -rewards.mean()
