"""What every distillation method shares: its settings, the teacher's velocity field, the trained steps, the anchor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Method, Needs, Options, Work
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count, Fraction, Weight
from bench.errors import UsageError
from bench.lazy import torch
from bench.sampler.distance import squared_distance
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class DistillationOptions(Options):
    """Settings shared by methods that learn from one teacher a task; defaults as in DiffusionOPD's released code."""

    trajectories: Count = 24
    """Trajectories per task and update."""
    timestep_fraction: Fraction = 0.99
    """The first int(steps * this) steps are trained."""
    batches: Literal["mixed", "alternate"] = "mixed"
    """mixed: every update averages all teachers; alternate: one teacher an update, in turn."""
    start: Literal["base", "merge"] = "base"
    """Where the student starts: the base, or the mean of the teachers' weight changes (Flow-OPD's cold start)."""
    anchor: Weight = 0.0
    """Weight of the velocity error to the base at the visited states: in the spirit of Flow-OPD's manifold anchor,
    which is .04 times its code's KL (so that steps weigh unequally) to a frozen aesthetic model, or else the base."""


class DistillationMethod(Method):
    """Checks and plan shared by the distillation methods."""

    needs = Needs(teachers=True)
    lowers_memory: ClassVar[tuple[str, ...]] = ("trajectories",)
    Options: ClassVar[type[DistillationOptions]]

    @classmethod
    def check(cls, spec, sampler) -> None:
        super().check(spec, sampler)
        if spec.lora.start and spec.params["start"] == "merge":
            raise UsageError("params.start merge overwrites lora.start: leave one of them out")
        if not trained_steps(sampler, spec.params["timestep_fraction"]):
            raise UsageError(
                f"params.timestep_fraction {spec.params['timestep_fraction']:g} of {sampler.steps} steps trains no step"
            )

    def prepare(self, lab: Lab) -> None:
        if self.options.start == "merge":
            merge_teachers(lab, 1 / len(lab.teachers))

    def plan(self, lab: Lab) -> dict[str, float]:
        if self.options.batches == "mixed":
            return super().plan(lab)
        tasks = list(lab.tasks)
        return {tasks[lab.step % len(tasks)]: 1.0}

    def targets(
        self, lab: Lab, task: str, conditioning: Conditioning, x: Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The teacher's velocity at states x [B, C, h, w], and the base's (the teacher's again without an anchor)."""
        target = lab.teacher(task, conditioning)(x, sigma)
        return target, lab.velocity(conditioning, None)(x, sigma) if self.options.anchor else target

    def anchored(
        self, loss: Tensor, lab: Lab, conditioning: Conditioning, x: Tensor, sigma: float | Tensor, v: Tensor
    ) -> Tensor:
        """`loss` [B] plus the anchor: the weighted squared error of the student's v to the base's velocity at x."""
        if not self.options.anchor:
            return loss
        with torch.no_grad():
            base = lab.velocity(conditioning, None)(x, sigma)
        return loss + self.options.anchor * squared_error(v, base)

    @classmethod
    def predict(cls, spec, sampler) -> int:
        work = cls.work(spec, sampler)
        assert work is not None  # every one of these methods says what an update does
        return work.passes.nfe

    @classmethod
    def trajectory_work(
        cls, spec, trained: int, teacher: int, rollout: int = 0, anchor: int = 0, kept: int = 1, prompts: int = 1,
        at_once: int | None = None,
    ) -> Work:  # fmt: skip
        """The work of an update from that of one trajectory, in passes per guidance branch: the student's with
        gradients, the teacher's, the student's without gradients, the base's if there is an anchor; and the latents and
        encoded prompts that are kept of it. `at_once`: latents of the largest forward with gradients, by default all
        trajectories of a task."""
        options = cls.Options.model_validate(spec.params)
        tasks, together = len(spec.tasks), len(spec.tasks) if options.batches == "mixed" else 1
        own = branches(spec.sampler.guidance)
        without = (rollout + (anchor if options.anchor else 0)) * own * tasks
        without += sum(teacher * branches(spec.teacher_guidance[task]) for task in spec.tasks)
        trajectories = options.trajectories
        return Work(
            Passes(trajectories * -(-without * together // tasks), trajectories * trained * own * together),
            drawn=trajectories,
            trained_at_once=at_once or trajectories,
            kept=trajectories * kept * together,
            prompts=trajectories * prompts * together,
        )


def branches(guidance: float) -> int:
    """Passes of one guided velocity."""
    return 1 if guidance == 1 else 2


def merge_teachers(lab: Lab, factor: float) -> None:
    """Set the student to `factor` times the sum of the teachers' weight changes; notes the share of energy kept.

    The changes B A are combined exactly and cut back to the student's rank by a truncated singular value
    decomposition; averaging A and B apart, as Flow-OPD's code does, is not an average of weight changes.
    """
    adapters = lab.backbone.adapters
    deltas = [adapters.deltas(name) for name in lab.teachers.values()]
    layers = dict.fromkeys(layer for delta in deltas for layer in delta)  # a teacher may leave some as the base's
    nothing = torch.zeros(())
    merged = {layer: factor * sum((d[layer] for d in deltas if layer in d), start=nothing) for layer in layers}
    lab.note("energy_kept", adapters.set_deltas(STUDENT, merged))


def squared_error(v: Tensor, target: Tensor) -> Tensor:
    """Mean over elements of the squared velocity difference, [B] (released code averages; the paper sums)."""
    return squared_distance(v, target) / v[0].numel()
