"""ReFL (arXiv 2304.05977, Alg. 1): the reward of the image that the student predicts from a random late state.

Every trajectory has its own late state, where the paper's code draws one per batch. Its loss of a reward r is relu(2 -
r) times 1e-3, which for rewards of at most 1 has the same direction as -r. The paper adds the pre-training loss on the
base's data, which is not here; with images of your own, train flow_matching on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.config.bounds import Fraction
from bench.lazy import torch
from bench.sampler.draws import draw
from bench.sampler.parts import parts
from bench.sampler.rollout import Sampler, walk
from bench.sampler.total import Total
from methods.reward_gradient import RewardGradientMethod, RewardGradientOptions, Sampled, reward_loss

if TYPE_CHECKING:
    from torch import Tensor


class ReflOptions(RewardGradientOptions):
    """Settings of ReFL."""

    late: Fraction = 0.25
    """The last int(steps * late) states before the end, at least one, can be drawn; 0.25 is the paper's 10 of 40."""


class Refl(RewardGradientMethod):
    """Maximise the reward of one-step predictions."""

    name = "refl"
    title = "ReFL"
    source = "ReFL, arXiv 2304.05977, Alg. 1, without its pre-training loss"
    Options = ReflOptions

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """A trajectory up to its last state, and one pass with gradients at the drawn one."""
        late = late_states(sampler, spec.params["late"])
        return cls.trajectory_work(spec, sampler, forward=sampler.steps - 1, trained=1, kept=late)

    def collect(self, lab: Lab, task: str) -> Sampled:
        """Sample up to the last state before the image, and keep the late states."""
        prompts = lab.prompts(task, self.options.trajectories)
        conditioning = lab.encode(prompts)
        noise = lab.backbone.noise(len(prompts), lab.generator("noise", task))
        steps = walk(lab.velocity(conditioning, STUDENT), noise, lab.sampler, lab.generator("kernel", task))
        states = [lab.sampler.schedule.start * noise]
        late = late_states(lab.sampler, self.options.late)
        for _, _, taken in islice(steps, lab.sampler.steps - 1):
            states = [*states, taken.next][-late:]
        return Sampled(states, prompts, conditioning)

    def losses(self, lab: Lab, task: str, experience: Sampled) -> Iterator[Tensor]:
        """Minus the mean reward of x - sigma v at a random late state, one piece per chunk of trajectories."""
        states, generator, total = torch.stack(experience.states), lab.generator("late", task), Total()
        count, rows = len(states), states.shape[1]
        sigmas = torch.tensor(lab.sampler.schedule.sigmas[:-1], dtype=torch.float32)[-count:]
        drawn = draw(lambda n: torch.randint(count, (n,), generator=generator), rows, generator)
        x, sigma = states[drawn, torch.arange(rows)], sigmas[drawn].to(states.device)
        for part in parts(range(rows), self.options.chunk):
            v = lab.velocity(experience.conditioning[part], STUDENT)(x[part], sigma[part])
            x0 = x[part] - sigma[part].view(-1, 1, 1, 1) * v
            yield reward_loss(lab, task, x0, experience.prompts[part], rows, total)
        lab.note(f"reward/{task}", float(total))


def late_states(sampler: Sampler, fraction: float) -> int:
    """Number of states that can be drawn: those of the last int(steps * fraction) steps, at least one."""
    return max(1, int(sampler.steps * fraction))
