"""Analytic on-policy distillation (DiffusionOPD, arXiv 2605.15055): one student, one teacher a task.

The student draws its own trajectories without gradients; at every visited state the closed-form KL between the two
one-step transitions is minimised. For Gaussian kernels of the same std that is a weighted velocity match,
w_k |v_student - v_teacher|^2 (Eq. 11; Eq. 12 for deterministic kernels), with w_k from bench/sampler/weighting.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.errors import UsageError
from bench.lab import STUDENT, Lab
from bench.method import Method, Needs, Options
from bench.sampler.rollout import rollout, walk
from bench.sampler.weighting import step_weights


class OpdOptions(Options):
    """Settings of analytic OPD; defaults as in the released configuration."""

    trajectories: Annotated[int, Field(gt=0)] = 24
    """Student trajectories per task and update."""
    weighting: Literal["true", "no_dt", "mean_matching", "velocity"] = "mean_matching"
    """What "the KL" is divided by; see bench list kernels and --dry-run."""
    timestep_fraction: Annotated[float, Field(gt=0, le=1)] = 0.99
    """The first int(steps * this) steps are trained."""
    execution: Literal["fused", "plain"] = "fused"
    """fused: one student forward a step serves rollout and loss; plain: roll out, store, train. Same gradient."""
    chunk: Annotated[int, Field(gt=0)] = 128
    """Latents per forward in plain training."""


@dataclass
class Start:
    """Initial noise [B, C, h, w] and prompts; in plain execution also the visited states and teacher velocities."""

    noise: Tensor
    conditioning: Conditioning
    states: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


def squared_error(v_student: Tensor, v_teacher: Tensor) -> Tensor:
    """Mean over elements of the squared velocity difference, [B] (released code averages; the paper sums)."""
    return (v_student - v_teacher).square().flatten(1).mean(1)


class OpdAnalytic(Method[Start]):
    name = "opd_analytic"
    source = "DiffusionOPD, arXiv 2605.15055, Eq. 11-14"
    needs = Needs(teachers=True)
    Options = OpdOptions

    @classmethod
    def check(cls, spec, sampler) -> None:
        super().check(spec, sampler)
        if int(sampler.steps * spec.params["timestep_fraction"]) < 1:
            raise UsageError(
                f"params.timestep_fraction {spec.params['timestep_fraction']:g} of {sampler.steps} steps trains no step"
            )

    @classmethod
    def predict(cls, spec, sampler) -> int:
        o = OpdOptions.model_validate(spec.params)
        trained = int(sampler.steps * o.timestep_fraction)
        student = 1 if spec.sampler.guidance == 1 else 2
        teachers = [1 if guidance == 1 else 2 for guidance in spec.teacher_guidance.values()]
        if o.execution == "fused":
            steps = [trained * (3 * student + teacher) for teacher in teachers]
        else:
            steps = [sampler.steps * (student + teacher) + 3 * trained * student for teacher in teachers]
        return o.trajectories * sum(steps)

    def weights(self, lab: Lab) -> list[float]:
        """Loss weight of each trained step."""
        return step_weights(lab.sampler, self.options.weighting)[
            : int(lab.sampler.steps * self.options.timestep_fraction)
        ]

    def collect(self, lab: Lab, task: str) -> Start:
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        start = Start(lab.backbone.noise(len(conditioning), lab.generator("noise", task)), conditioning)
        if self.options.execution == "plain":
            field = lab.velocity(conditioning, STUDENT)
            kernel_noise = lab.generator("kernel", task)
            start.states = rollout(field, start.noise, lab.sampler, kernel_noise, keep=True).states[:-1]
            teacher = lab.teacher(task, conditioning)
            start.targets = [teacher(x, s) for x, s in zip(start.states, lab.sampler.schedule.sigmas)]
        return start

    def losses(self, lab: Lab, task: str, experience: Start) -> Iterator[Tensor]:
        weights = self.weights(lab)
        pieces = self._plain if self.options.execution == "plain" else self._fused
        total = 0.0
        for piece in pieces(lab, task, experience, weights):
            total += float(piece.detach())
            yield piece
        lab.note(f"kl/{task}", total)

    def _fused(self, lab: Lab, task: str, start: Start, weights: list[float]) -> Iterator[Tensor]:
        """Walk with gradients one step at a time; the trajectory ends with the last trained step."""
        student = lab.velocity(start.conditioning, STUDENT)
        teacher = lab.teacher(task, start.conditioning)
        steps = walk(student, start.noise, lab.sampler, lab.generator("kernel", task))
        for weight, (k, x, taken) in zip(weights, steps):
            with torch.no_grad():
                target = teacher(x, lab.sampler.schedule.sigmas[k])
            yield weight * squared_error(taken.velocity, target).mean() / len(weights)

    def _plain(self, lab: Lab, task: str, start: Start, weights: list[float]) -> Iterator[Tensor]:
        """Train on stored states, several steps in one batch."""
        trained, batch = len(weights), len(start.noise)
        states, targets = torch.cat(start.states[:trained]), torch.cat(start.targets[:trained])
        sigma = torch.tensor(lab.sampler.schedule.sigmas[:trained]).repeat_interleave(batch).to(states.device)
        weight = torch.tensor(weights).repeat_interleave(batch).to(states.device)
        conditioning = start.conditioning.repeat(trained)
        for part in torch.arange(len(states)).split(self.options.chunk):
            v = lab.velocity(conditioning[part], STUDENT)(states[part], sigma[part])
            yield (weight[part] * squared_error(v, targets[part])).sum() / (trained * batch)
