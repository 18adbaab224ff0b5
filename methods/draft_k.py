"""DRaFT-K (arXiv 2309.17400, Alg. 1): backpropagate the reward through the last K steps of the sampler.

K = sampler.steps is DRaFT. Gradients flow through the states as well as through the velocities.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.config.bounds import Count
from bench.errors import UsageError
from bench.sampler.draws import normal
from bench.sampler.parts import parts
from bench.sampler.rollout import walk
from bench.sampler.step import step
from bench.sampler.total import Total
from methods.reward_gradient import RewardGradientMethod, RewardGradientOptions, Sampled, reward_loss

if TYPE_CHECKING:
    from torch import Tensor


class DraftOptions(RewardGradientOptions):
    """Settings of DRaFT-K."""

    last: Count = 1
    """K: the number of final sampling steps through which gradients flow."""


class DraftK(RewardGradientMethod):
    """Maximise the reward of the student's own images by its gradient."""

    name = "draft_k"
    title = "DRaFT-K"
    source = "DRaFT-K, arXiv 2309.17400, Alg. 1"
    Options = DraftOptions
    lowers_memory = ("chunk", "last", "trajectories")

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse more steps than there are, and kernels whose steps depend on earlier ones."""
        super().check(spec, sampler)
        last = spec.params["last"]
        if last > sampler.steps:
            raise UsageError(f"params.last {last} exceeds the {sampler.steps} steps of the sampler: lower it")
        if any(at.d for at in sampler.coefficients):
            raise UsageError(
                f"method {cls.name!r} needs a one-step kernel, not {sampler.kernel.name!r}: set sampler.kernel"
            )

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """The last K steps of a trajectory have gradients, the others not."""
        last = spec.params["last"]
        return cls.trajectory_work(spec, sampler, forward=sampler.steps - last, trained=last, kept=1)

    def collect(self, lab: Lab, task: str) -> Sampled:
        """Sample up to the last K steps."""
        prompts = lab.prompts(task, self.options.trajectories)
        conditioning = lab.encode(prompts)
        noise = lab.backbone.noise(len(prompts), lab.generator("noise", task))
        steps = walk(lab.velocity(conditioning, STUDENT), noise, lab.sampler, lab.generator("kernel", task))
        x = lab.sampler.schedule.start * noise
        for _, _, taken in islice(steps, lab.sampler.steps - self.options.last):
            x = taken.next
        return Sampled([x], prompts, conditioning)

    def losses(self, lab: Lab, task: str, experience: Sampled) -> Iterator[Tensor]:
        """Minus the mean reward of the finished images, one piece per chunk of trajectories."""
        (start,), generator, total = experience.states, lab.generator("last_kernel", task), Total()
        first = lab.sampler.steps - self.options.last
        steps = list(zip(lab.sampler.schedule.sigmas, lab.sampler.coefficients))[first:]
        # Drawn for all chunks at once: the noise must not depend on the size of chunks.
        noises = [normal(start.shape, generator, start.device) if at.c else None for _, at in steps]
        for part in parts(range(len(start)), self.options.chunk):
            velocity, x = lab.velocity(experience.conditioning[part], STUDENT), start[part]
            for (sigma, at), noise in zip(steps, noises):
                x = step(x, velocity(x, sigma), at, noise=None if noise is None else noise[part]).next
            yield reward_loss(lab, task, x, experience.prompts[part], len(start), total)
        lab.note(f"reward/{task}", float(total))
