"""Self-OPD (arXiv 2608.26872): on-policy distillation without a teacher; the student's own branches, scored, teach it.

At a step of the student's trajectory branches y_k are drawn from its transition, whose mean is m and std c, completed
without noise, and scored. The loss is the mean of w_k |m - y_k|^2 / (2 c^2), a mean over elements, with the weights w_k
of methods/branching.py: branches better than the step without noise attract, worse ones repel.

Which steps are trained is not drawn, as in the authors' code with weights 10, 9, 8, 7, 6, 4, 2, 1, 0 for 9 steps. They
take turns, so that costs are known: step j of n comes n - 1 - j times per cycle. The last one is never trained, which
matters: its c is the least, and 1 / c^2 makes its gradient drown that of all other steps. Not reproduced either: their
code also scores the trajectories, to leave out prompts whose 16 images all have the same reward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bench.api.lab import STUDENT, Lab
from bench.api.method import Needs, Work
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count, Fraction, Moderate
from bench.errors import UsageError
from bench.lazy import torch
from bench.sampler.distance import squared_distance
from bench.sampler.gaussian import Transition
from bench.sampler.parts import parts
from bench.sampler.rollout import walk
from methods.allocation import reward_gap
from methods.branching import Branches, branch, branch_weights
from methods.combining import CombiningMethod, CombiningOptions
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class SelfOpdOptions(CombiningOptions):
    """Settings of Self-OPD; defaults as in its released code."""

    trajectories: Count = 128
    """Trajectories per task and update."""
    branches: Annotated[int, Field(gt=1, le=1000)] = 8
    """Next states per trained state, K."""
    steps: Count = 2
    """Steps per update that are trained, the same for all trajectories."""
    timestep_fraction: Fraction = 0.99
    """Only the first int(steps * timestep_fraction) steps with noise take turns, and the last of these has none."""
    weight_clip: Moderate = 1.0
    """Weights of branches are clipped to +- weight_clip."""
    chunk: Count = 96
    """Latents per forward with gradients; it bounds memory and does not change the gradient."""


@dataclass
class BranchedStates:
    """The branches of every trained step, and the prompts of their states."""

    branches: list[Branches]
    conditioning: Conditioning


class SelfOpd(CombiningMethod):
    """On-policy distillation from the student's own scored branches."""

    name = "self_opd"
    title = "Self-OPD"
    source = "Self-OPD, arXiv 2608.26872"
    needs = Needs(rewards=True, stochastic=True)
    Options = SelfOpdOptions
    lowers_memory = ("chunk", "trajectories")

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse a timestep fraction that trains no step."""
        super().check(spec, sampler)
        options = SelfOpdOptions.model_validate(spec.params)
        if not trained_steps(sampler, options.timestep_fraction, noisy=True):
            raise UsageError(
                f"params.timestep_fraction {options.timestep_fraction:g} of {sampler.steps} steps trains no step"
            )

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """A trajectory up to the last trained step; per step K + 1 completions and a pass with gradients.

        Completions are the shorter the later the step: the cost is the mean over a cycle of updates, rounded up.
        """
        o = SelfOpdOptions.model_validate(spec.params)
        turns = cycle(trained_steps(sampler, o.timestep_fraction, noisy=True))
        updates = [steps_of(turns, update, o.steps) for update in range(len(turns))]
        completed = sum(sampler.steps - 1 - k for steps in updates for k in steps)
        forward = sum(max(steps) + 1 for steps in updates) + (o.branches + 1) * completed
        states, scored = o.trajectories * len(spec.tasks), o.trajectories * (o.branches + 1)
        network = states * sampler.passes(spec.sampler.guidance)
        return Work(
            Passes(-(-forward * network // len(turns)), o.steps * network),
            drawn=scored,
            trained_at_once=min(o.chunk, o.trajectories),
            kept=states * o.steps * (2 + o.branches),
            prompts=states,
            pictures=scored * o.steps * len(spec.tasks),
            pictures_at_once=scored,
        )

    def collect(self, lab: Lab, task: str) -> BranchedStates:
        """Follow the student's trajectories, and branch at the steps of this update."""
        o, sampler = self.options, lab.sampler
        prompts = lab.prompts(task, o.trajectories)
        conditioning = lab.encode(prompts)
        noise = lab.backbone.noise(len(prompts), lab.generator("noise", task))
        due = steps_of(cycle(trained_steps(sampler, o.timestep_fraction, noisy=True)), lab.step, o.steps)
        generator, found = lab.generator("branches", task), []
        student = walk(lab.velocity(conditioning, STUDENT), noise, sampler, lab.generator("kernel", task))
        # zip asks `range` first, so the student is not called for a step beyond the last trained one.
        for _, (k, x, taken) in zip(range(max(due) + 1), student):
            for _ in range(due.count(k)):
                v = taken.velocity
                found.append(branch(lab, task, prompts, conditioning, k, x, v, o.branches, generator))
        return BranchedStates(found, conditioning)

    def losses(self, lab: Lab, task: str, experience: BranchedStates) -> Iterator[Tensor]:
        """The weighted squared distance to the branches, one piece per trained step and chunk of states."""
        o, device = self.options, experience.branches[0].x.device
        own = best = 0.0
        for at in experience.branches:
            rewards, without_noise = at.rewards()
            own += float(without_noise.mean()) / o.steps
            best += float(rewards.max(1).mean()) / o.steps
            scored = torch.as_tensor(rewards, dtype=torch.float32, device=device)
            compared = torch.as_tensor(without_noise, dtype=torch.float32, device=device)
            weights = branch_weights(scored, compared, at.drawn - at.mean[:, None], o.weight_clip)
            kernel, sigma = lab.sampler.coefficients[at.step], lab.sampler.schedule.sigmas[at.step]
            for part in parts(range(len(at.x)), o.chunk):
                v = lab.velocity(experience.conditioning[part], STUDENT)(at.x[part], sigma)
                mean = Transition(at.x[part], v, kernel).mean
                errors = [squared_distance(mean, at.drawn[part, k]) for k in range(o.branches)]
                loss = (weights[part] * torch.stack(errors, 1)).mean(1) / (2 * kernel.c**2 * v[0].numel())
                yield loss.sum() / (len(at.x) * o.steps)
        lab.note(f"reward/{task}", own)
        lab.note(f"reward_best/{task}", best)

    def distance(self, lab: Lab, task: str) -> float:
        """The highest reward minus the mean without noise."""
        return reward_gap(lab, task)


def cycle(trained: list[int]) -> list[int]:
    """Trained steps in the order in which updates take them: step j of n > 1 comes n - 1 - j times, spread evenly."""
    turns = {k: len(trained) - 1 - j for j, k in enumerate(trained)} if len(trained) > 1 else dict.fromkeys(trained, 1)
    return [k for _, k in sorted(((i + 0.5) / times, k) for k, times in turns.items() for i in range(times))]


def steps_of(turns: list[int], update: int, count: int) -> list[int]:
    """The `count` steps that an update trains, in ascending order; a step can come twice, with other branches."""
    return sorted(turns[(update * count + i) % len(turns)] for i in range(count))
