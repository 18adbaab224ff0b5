"""Independent estimates of a method's update direction at a frozen student, with the two sources of chance apart."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bench.api.lab import STUDENT, Lab
from bench.api.method import Method
from bench.backbones.conditioning import Conditioning
from bench.hashing import seed_of
from bench.sampler.rollout import Velocity
from bench.system.workers import ALONE

# What decides which prompts and initial noises are met. All other draws (kernel noise, noise levels, queried steps)
# are the estimator's own.
STATE_PURPOSES = frozenset({"prompts", "noise"})


@dataclass
class ProbeLab(Lab):
    """A Lab whose `seed` decides prompts and initial noise, and `own_seed` everything else."""

    own_seed: int = 0
    sigma: float | None = None
    """Only the student's outputs at this noise level pass gradients; None: at every level."""

    @classmethod
    def of(cls, lab: Lab) -> "ProbeLab":
        """A probe's view of a run's laboratory: same models, tasks and step, chances of its own.

        Every process of a run sees the whole of it.
        """
        return cls(**{f.name: getattr(lab, f.name) for f in fields(lab)} | {"workers": ALONE, "rows": {}})

    def seed_for(self, purpose: str, task: str) -> int:
        seed = self.seed if purpose in STATE_PURPOSES else self.own_seed
        return seed_of("probe", seed, self.step, task, purpose)

    def velocity(self, conditioning: Conditioning, adapter: str | None, guidance: float | None = None) -> Velocity:
        """As in a run; with `sigma` set the gradient splits by noise level, because it is linear in that of v."""
        field = super().velocity(conditioning, adapter, guidance)
        if self.sigma is None or adapter != STUDENT:
            return field

        def at_one_level(x: Tensor, sigma: float | Tensor) -> Tensor:
            v = field(x, sigma)
            if v.requires_grad:
                level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
                here = torch.isclose(level, torch.tensor(self.sigma, device=x.device)).view(-1, 1, 1, 1)
                v.register_hook(lambda gradient: gradient * here)
            return v

        return at_one_level

    def at(self, seed: int, own_seed: int) -> "ProbeLab":
        """The same laboratory with other chances."""
        return replace(self, seed=seed, own_seed=own_seed, notes={})


def task_gradients(method: Method, lab: Lab, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    """One estimate of each task's gradient in the student, flat float32 [P]; weights of the plan are not applied."""
    parameters = lab.backbone.adapters.parameters(STUDENT)
    with torch.no_grad():
        experiences = method.mix(lab, {task: method.collect(lab, task) for task in tasks})
    gradients = {}
    for task in tasks:
        for parameter in parameters:
            parameter.grad = None
        for piece in method.losses(lab, task, experiences[task]):
            piece.backward()
        gradients[task] = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in parameters]
        )
    for parameter in parameters:
        parameter.grad = None
    return gradients


def nested(
    method: Method, lab: ProbeLab, tasks: tuple[str, ...], states: Iterable[int], draws: int
) -> Iterator[list[Tensor]]:
    """For each state (a seed of prompts and noise): `draws` estimates of the mean gradient over tasks, each [P]; the
    combined one of a method that has a rule for it."""
    for state in states:
        estimates = []
        for draw in range(draws):
            there = lab.at(state, state * draws + draw)
            gradients = task_gradients(method, there, tasks)
            if method.combines():
                estimates.append(method.combine(there, gradients, dict.fromkeys(tasks, 1 / len(tasks))))
            else:
                estimates.append(torch.stack(list(gradients.values())).mean(0))
        yield estimates
