"""Analytic on-policy distillation (DiffusionOPD, arXiv 2605.15055): one student, one teacher per task.

The student draws its own trajectories, and no gradient flows from step to step. At every visited state the closed-form
KL between the student's and the teacher's one-step transitions is minimised. For Gaussian kernels of equal std this is
weighted velocity matching, w_k |v_student - v_teacher|^2 (Eq. 11; Eq. 12 for deterministic kernels), with w_k from
bench/sampler/weighting.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

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
from methods.distillation import DistillationMethod, DistillationOptions
from methods.targets import Outputs, error, matched_parts
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class OpdOptions(DistillationOptions):
    """Settings of analytic OPD; defaults as in the released configuration."""

    unsaid: ClassVar[tuple[str, ...]] = ("self_normalise",)

    weighting: Weighting = "mean_matching"
    """Weights w_k of the steps; `bench list kernels` and `--dry-run` show them."""
    self_normalise: bool = False
    """Divide the loss of every state by its mean absolute difference sqrt(w_k) |v_student - v_teacher|, held constant
    (Flow-Factory)."""
    execution: Literal["fused", "plain"] = "fused"
    """fused: one student forward per step serves both the rollout and the loss. plain: roll out, store the states, then
    train on them. Both give the same gradient."""
    chunk: Count = 128
    """Latents per forward with gradients; it bounds memory and does not change the gradient."""


@dataclass
class Start:
    """Initial noise [B, C, h, w] and prompts; in plain execution also, per trained step, the visited states, the
    targets at them and, with an anchor, the base's velocities."""

    noise: Tensor
    conditioning: Conditioning
    states: list[Tensor] = field(default_factory=list)
    targets: list[Outputs] = field(default_factory=list)
    anchors: list[Tensor] = field(default_factory=list)


class OpdAnalytic(DistillationMethod):
    """Closed-form on-policy distillation."""

    name = "opd_analytic"
    title = "Analytic OPD"
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
            return cls.trajectory_work(spec, sampler, trained=steps, teacher=steps, anchor=steps, at_once=at_once)
        # Per step: the state, what is matched and, with an anchor, the base's velocity.
        kept = 1 + steps * (1 + matched_parts(o.matching) + bool(o.anchor))
        at_once = min(o.chunk, o.trajectories * steps)
        return cls.trajectory_work(
            spec, sampler, steps, steps, sampler.steps, steps, kept, prompts=1 + steps, at_once=at_once
        )

    def collect(self, lab: Lab, task: str) -> Start:
        """Draw prompts and noise; in plain execution also roll out the student and query the target."""
        conditioning = lab.encode(lab.prompts(task, self.options.trajectories))
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        start = Start(noise, conditioning)
        if self.options.execution == "plain":
            student = lab.velocity(conditioning, STUDENT)
            kernel_noise = lab.generator("kernel", task)
            states = rollout(student, start.noise, lab.sampler, kernel_noise, keep=True).states
            steps = trained_steps(lab.sampler, self.options.timestep_fraction)
            start.states = [states[k] for k in steps]
            sigmas, target = lab.sampler.schedule.sigmas, self.target(lab, task, conditioning)
            for k, x in zip(steps, start.states):
                target(x, sigmas[k])
                start.targets.append(target.outputs)
                if (base := self.anchor(lab, conditioning, x, sigmas[k])) is not None:
                    start.anchors.append(base)
        return start

    def losses(self, lab: Lab, task: str, experience: Start) -> Iterator[Tensor]:
        """The weighted KL of Eq. 11, one piece per step and chunk (fused) or per chunk of states (plain)."""
        steps = trained_steps(lab.sampler, self.options.timestep_fraction)
        weights = [step_weights(lab.sampler, self.options.weighting)[k] for k in steps]
        pieces = self._plain if self.options.execution == "plain" else self._fused
        total = Total()
        yield from pieces(lab, task, experience, weights, total)
        lab.note(f"kl/{task}", float(total))

    def _fused(self, lab: Lab, task: str, start: Start, weights: list[float], total: Total) -> Iterator[Tensor]:
        """Backpropagate through one step at a time along the trajectory, which ends with the last trained step.

        The distance to the target, without an anchor, is added to `total`.
        """
        sigmas, batch = lab.sampler.schedule.sigmas, len(start.noise)
        for part in parts(range(batch), self.options.chunk):
            conditioning = start.conditioning[part]
            # Every chunk starts the same generator afresh and takes its rows of the whole batch's noise, so that the
            # trajectories do not depend on the chunk size.
            generator = lab.generator("kernel", task)
            rows = generator.rows or Rows(0, batch, batch)
            generator.rows = rows.part(part.start, part.stop)
            student, target = self.student(lab, conditioning), self.target(lab, task, conditioning)
            steps = walk(student, start.noise[part], lab.sampler, generator)
            for weight, (k, x, taken) in zip(weights, steps):
                with torch.no_grad():
                    target(x, sigmas[k])
                    base = self.anchor(lab, conditioning, x, sigmas[k])
                loss = error(student.outputs, target.outputs, weight, self.options.self_normalise)
                total.add(loss.mean() / len(weights) * (len(x) / batch))
                loss = self.anchored(loss, taken.velocity, base).mean() / len(weights)
                yield loss * (len(x) / batch)

    def _plain(self, lab: Lab, task: str, start: Start, weights: list[float], total: Total) -> Iterator[Tensor]:
        """Train on the stored states, with several steps in one batch; `total` is as in `_fused`."""
        trained, batch = len(weights), len(start.noise)
        states, targets = torch.cat(start.states), [torch.cat(steps) for steps in zip(*start.targets)]
        bases = torch.cat(start.anchors) if start.anchors else None
        sigmas = torch.tensor(lab.sampler.schedule.sigmas[:trained])
        sigma = sigmas.repeat_interleave(batch).to(states.device)
        weight = torch.tensor(weights).repeat_interleave(batch).to(states.device)
        conditioning = start.conditioning.repeat(trained)
        for part in parts(range(len(states)), self.options.chunk):
            student = self.student(lab, conditioning[part])
            v = student(states[part], sigma[part])
            there = tuple(target[part] for target in targets)
            loss = error(student.outputs, there, weight[part], self.options.self_normalise)
            total.add(loss.sum() / (trained * batch))
            loss = self.anchored(loss, v, None if bases is None else bases[part])
            yield loss.sum() / (trained * batch)
