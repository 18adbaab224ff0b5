"""Analytic on-policy distillation (DiffusionOPD, arXiv 2605.15055): one student, one teacher per task.

The student draws its own trajectories, and no gradient flows from step to step. At every visited state the closed-form
KL between the student's and the teacher's one-step transitions is minimised. For Gaussian kernels of equal std this is
weighted velocity matching, w_k |v_student - v_teacher|^2 (Eq. 11; Eq. 12 for deterministic kernels), with w_k from
bench/sampler/weighting.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.config.bounds import Count
from bench.lazy import torch
from bench.sampler.draws import Rows
from bench.sampler.parts import parts
from bench.sampler.rollout import rollout, walk
from bench.sampler.total import Total
from bench.sampler.weighting import Weighting, step_weights
from methods.distillation import DistillationMethod, DistillationOptions, squared_error
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class OpdOptions(DistillationOptions):
    """Settings of analytic OPD; defaults as in the released configuration."""

    weighting: Weighting = "mean_matching"
    """Weights w_k of the steps; `bench list kernels` and `--dry-run` show them."""
    execution: Literal["fused", "plain"] = "fused"
    """fused: one student forward per step serves both the rollout and the loss. plain: roll out, store the states, then
    train on them. Both give the same gradient."""
    chunk: Count = 128
    """Latents per forward with gradients; it bounds memory and does not change the gradient."""


@dataclass
class Start:
    """Initial noise [B, C, h, w] and prompts; in plain execution also, per trained step, the visited states and the
    velocities of teacher and base at them."""

    noise: Tensor
    conditioning: Conditioning
    states: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    anchors: list[Tensor] = field(default_factory=list)


class OpdAnalytic(DistillationMethod):
    """Closed-form on-policy distillation."""

    name = "opd_analytic"
    source = "DiffusionOPD, arXiv 2605.15055, Eq. 11-14"
    Options = OpdOptions
    lowers_memory = ("chunk", "trajectories")

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """Fused execution has no separate rollout; plain execution adds one and stores its states."""
        o = OpdOptions.model_validate(spec.params)
        steps = len(trained_steps(sampler, o.timestep_fraction))
        if o.execution == "fused":
            at_once = min(o.chunk, o.trajectories)
            return cls.trajectory_work(spec, trained=steps, teacher=steps, anchor=steps, at_once=at_once)
        # Per step: the state, the teacher's velocity and, with an anchor, the base's.
        kept = 1 + steps * (3 if o.anchor else 2)
        at_once = min(o.chunk, o.trajectories * steps)
        return cls.trajectory_work(spec, steps, steps, sampler.steps, steps, kept, prompts=1 + steps, at_once=at_once)

    def collect(self, lab: Lab, task: str) -> Start:
        """Draw prompts and noise; in plain execution also roll out the student and query the teacher."""
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        start = Start(noise, conditioning)
        if self.options.execution == "plain":
            student = lab.velocity(conditioning, STUDENT)
            kernel_noise = lab.generator("kernel", task)
            states = rollout(student, start.noise, lab.sampler, kernel_noise, keep=True).states
            steps = trained_steps(lab.sampler, self.options.timestep_fraction)
            start.states = [states[k] for k in steps]
            sigmas = lab.sampler.schedule.sigmas
            for k, x in zip(steps, start.states):
                target, anchor = self.targets(lab, task, conditioning, x, sigmas[k])
                start.targets.append(target)
                start.anchors.append(anchor)
        return start

    def losses(self, lab: Lab, task: str, experience: Start) -> Iterator[Tensor]:
        """The weighted KL of Eq. 11, one piece per step and chunk (fused) or per chunk of states (plain)."""
        steps = trained_steps(lab.sampler, self.options.timestep_fraction)
        weights = [step_weights(lab.sampler, self.options.weighting)[k] for k in steps]
        pieces = self._plain if self.options.execution == "plain" else self._fused
        total = Total()
        for piece in pieces(lab, task, experience, weights):
            total.add(piece)
            yield piece
        lab.note(f"kl/{task}", float(total))

    def _error(self, v: Tensor, target: Tensor, anchor: Tensor, weight: Tensor | float) -> Tensor:
        """Loss per state, [B]."""
        error = weight * squared_error(v, target)
        if not self.options.anchor:
            return error
        return error + self.options.anchor * squared_error(v, anchor)

    def _fused(self, lab: Lab, task: str, start: Start, weights: list[float]) -> Iterator[Tensor]:
        """Backpropagate through one step at a time along the trajectory, which ends with the last trained step."""
        sigmas, batch = lab.sampler.schedule.sigmas, len(start.noise)
        for part in parts(range(batch), self.options.chunk):
            conditioning = start.conditioning[part]
            # Every chunk starts the same generator afresh and takes its rows of the whole batch's noise, so that the
            # trajectories do not depend on the chunk size.
            generator = lab.generator("kernel", task)
            rows = generator.rows or Rows(0, batch, batch)
            generator.rows = rows.part(part.start, part.stop)
            student = lab.velocity(conditioning, STUDENT)
            steps = walk(student, start.noise[part], lab.sampler, generator)
            for weight, (k, x, taken) in zip(weights, steps):
                with torch.no_grad():
                    target, anchor = self.targets(lab, task, conditioning, x, sigmas[k])
                error = self._error(taken.velocity, target, anchor, weight).mean() / len(weights)
                yield error * (len(x) / batch)

    def _plain(self, lab: Lab, task: str, start: Start, weights: list[float]) -> Iterator[Tensor]:
        """Train on the stored states, with several steps in one batch."""
        trained, batch = len(weights), len(start.noise)
        states, targets = torch.cat(start.states), torch.cat(start.targets)
        anchors = torch.cat(start.anchors)
        sigmas = torch.tensor(lab.sampler.schedule.sigmas[:trained])
        sigma = sigmas.repeat_interleave(batch).to(states.device)
        weight = torch.tensor(weights).repeat_interleave(batch).to(states.device)
        conditioning = start.conditioning.repeat(trained)
        for part in parts(range(len(states)), self.options.chunk):
            v = lab.velocity(conditioning[part], STUDENT)(states[part], sigma[part])
            error = self._error(v, targets[part], anchors[part], weight[part])
            yield error.sum() / (trained * batch)
