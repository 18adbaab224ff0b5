"""Independent estimates of a method's gradient at a frozen student, with two separate sources of randomness."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bench.api.draws import Draws
from bench.api.lab import STUDENT, Lab
from bench.api.method import Method
from bench.backbones.conditioning import Conditioning
from bench.hashing import seed_of
from bench.sampler.rollout import Velocity
from bench.system.workers import ALONE

STATE_PURPOSES = frozenset({"prompts", "noise"})
"""Purposes of the draws that decide the prompts and the initial noise. All other draws (kernel noise, noise levels,
queried steps) belong to the estimator."""


@dataclass
class ProbeLab(Lab):
    """A Lab in which `seed` decides the prompts and the initial noise, and `own_seed` all other draws."""

    own_seed: int = 0
    """Seed of the estimator's draws."""
    sigma: float | None = None
    """The only noise level at which gradients flow through the student's output; None means every level."""

    @classmethod
    def of(cls, lab: Lab) -> "ProbeLab":
        """A probe's view of a run's Lab, with the same models, tasks and step but separate random numbers.

        Every process of the run has all prompts, instead of a shard.
        """
        copied = {f.name: getattr(lab, f.name) for f in fields(lab)}
        return cls(**copied | {"workers": ALONE, "rows": {}, "draws": Draws()})

    def seed_for(self, purpose: str, task: str, step: int | None = None) -> int:
        """The seed of the random numbers for one purpose and task, different from every seed of training."""
        seed = self.seed if purpose in STATE_PURPOSES else self.own_seed
        return seed_of("probe", seed, self.step if step is None else step, task, purpose)

    def velocity(self, conditioning: Conditioning, adapter: str | None, guidance: float | None = None) -> Velocity:
        """As in `Lab`; with `sigma` set, only the gradient through v at this noise level remains."""
        field = super().velocity(conditioning, adapter, guidance)
        if self.sigma is None or adapter != STUDENT:
            return field

        return lambda x, sigma: self._at_one_level(field(x, sigma), sigma)

    def branches(
        self, conditioning: Conditioning, adapter: str | None
    ) -> Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor]]:
        """As in `Lab`; with `sigma` set, only the gradients through both at this noise level remain."""
        both = super().branches(conditioning, adapter)
        if self.sigma is None or adapter != STUDENT:
            return both

        def at_one_level(x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
            v_cond, v_uncond = both(x, sigma)
            return self._at_one_level(v_cond, sigma), self._at_one_level(v_uncond, sigma)

        return at_one_level

    def _at_one_level(self, v: Tensor, sigma: float | Tensor) -> Tensor:
        """The velocity v [B, C, h, w] at noise level `sigma`, with gradients only where that is the chosen level."""
        # The gradient is linear in those of the outputs, so its parts at single noise levels sum to it.
        if v.requires_grad:
            level = torch.as_tensor(sigma, dtype=torch.float32, device=v.device).expand(len(v))
            here = torch.isclose(level, torch.tensor(self.sigma, device=v.device)).view(-1, 1, 1, 1)
            v.register_hook(lambda gradient: gradient * here)
        return v

    def at(self, seed: int, own_seed: int) -> "ProbeLab":
        """The same Lab with different seeds."""
        return replace(self, seed=seed, own_seed=own_seed, notes={}, draws=Draws())


def task_gradients(method: Method, lab: Lab, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """One estimate of each task's gradient, flat float32 [P] over the student's weights, without the plan's weights."""
    parameters = lab.backbone.adapters.parameters(STUDENT)
    with torch.no_grad():
        experiences = method.mix(lab, {task: method.collect(lab, task) for task in tasks})
    gradients = {}
    for task in tasks:
        for parameter in parameters:
            parameter.grad = None
        for piece in method.losses(lab, task, experiences[task]):
            piece.backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        gradients[task] = torch.cat([gradient.flatten().float() for gradient in found])
    for parameter in parameters:
        parameter.grad = None
    return gradients


def nested(
    method: Method, lab: ProbeLab, tasks: tuple[str, ...], states: Iterable[int], draws: int
) -> Iterator[list[Tensor]]:
    """For each state (a seed of prompts and initial noise), `draws` estimates of the gradient over all tasks, each [P].

    It is the mean over tasks, or the result of `combine` for a method that overrides it.
    """
    for state in states:
        estimates = []
        for draw in range(draws):
            there = lab.at(state, state * draws + draw)
            gradients = task_gradients(method, there, tasks)
            if method.combines():
                equal = dict.fromkeys(tasks, 1 / len(tasks))
                estimates.append(method.combine(there, gradients, equal))
            else:
                stacked = torch.stack(list(gradients.values()))
                estimates.append(stacked.mean(0))
        yield estimates
