"""The shared part of the distillation methods: settings, plan over teachers, velocity targets, anchor and cost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.api.lab import Lab
from bench.api.method import Needs, Work
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count, Fraction, Weight
from bench.errors import UsageError
from methods.combining import CombiningMethod, CombiningOptions
from methods.merging import averaged, check_mergeable, merge_teachers
from methods.targets import (
    Field,
    TargetOptions,
    asked_teachers,
    matched_scale,
    squared_error,
    student_field,
    target_field,
)
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor

    from bench.sampler.rollout import Sampler


class DistillationOptions(TargetOptions, CombiningOptions):
    """Settings of all methods that learn from one teacher per task; defaults as in DiffusionOPD's released code."""

    trajectories: Count = 24
    """Trajectories per task and update."""
    timestep_fraction: Fraction = 0.99
    """The first int(steps * timestep_fraction) steps of a trajectory are trained."""
    batches: Literal["mixed", "alternate"] = "mixed"
    """mixed: every update averages over all teachers. alternate: one teacher per update, in turn."""
    start: Literal["base", "merge"] = "base"
    """Where the student starts: at the base, or at the mean of the teachers' weight changes (Flow-OPD's cold start)."""
    anchor: Weight = 0.0
    """Weight of the squared velocity error to the base at the visited states. It is modelled on Flow-OPD's manifold
    anchor, which is 0.04 times the KL of its code (so steps have unequal weights) to a frozen aesthetic model, or to
    the base if there is none."""


class DistillationMethod(CombiningMethod):
    """Checks, plan, targets and cost shared by the distillation methods."""

    needs = Needs(teachers=True)
    lowers_memory: ClassVar[tuple[str, ...]] = ("trajectories",)
    Options: ClassVar[type[DistillationOptions]]
    variants: ClassVar[dict[str, str]] = {
        "params.extrapolation": "target beyond the teacher, STEP-OPD",
        "params.matching=branches": "both branches of guidance, IBM, arXiv 2607.24731",
        "params.matching=difference": "conditional velocity and guidance direction, PDM, arXiv 2607.24731",
        "params.teachers=all": "every prompt asks all teachers, DiffusionOPSD, arXiv 2608.24646",
        "params.start=merge": "cold start at the teachers' mean, Flow-OPD, arXiv 2605.08063",
    }
    matches_parts: ClassVar[bool] = True
    """Whether the parts of guidance can be matched (params.matching), and not only the guided velocity."""

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse two different starting points, a fraction that trains no step, and targets that do not exist."""
        super().check(spec, sampler)
        options = cls.Options.model_validate(spec.params)
        if options.matching != "guided" and not cls.matches_parts:
            raise UsageError(
                f"params.matching {options.matching} matches the parts of guidance, but method {cls.name!r} needs the "
                "guided velocity: set params.matching guided"
            )
        if options.matching != "guided" and sampler.embedded_guidance:
            raise UsageError(
                f"params.matching {options.matching} matches the parts of guidance, but backbone {spec.backbone!r} "
                "takes the guidance scale as an input and has no such parts: set params.matching guided"
            )
        if options.matching != "guided" and spec.sampler.guidance == 1:
            raise UsageError(
                f"params.matching {options.matching} matches the parts of guidance, but at guidance scale 1 the "
                "student has only one: set sampler.guidance to another scale"
            )
        if options.teachers == "all" and len(spec.tasks) == 1:
            raise UsageError("params.teachers all asks the teachers of several tasks, but the run has one")
        if spec.params["start"] == "merge":
            check_mergeable(spec, "params.start merge")
        if spec.lora.start and spec.params["start"] == "merge":
            raise UsageError("params.start merge would overwrite the weights of lora.start: set only one of the two")
        if not trained_steps(sampler, spec.params["timestep_fraction"]):
            raise UsageError(
                f"params.timestep_fraction {spec.params['timestep_fraction']:g} of {sampler.steps} steps trains no step"
            )

    def prepare(self, lab: Lab) -> None:
        """Merge the teachers into the student if `start` asks for it."""
        if self.options.start == "merge":
            merge_teachers(lab, partial(averaged, weights=dict.fromkeys(lab.teachers, 1.0)))

    def plan(self, lab: Lab) -> dict[str, float]:
        """Weight all tasks equally, or take one task per update in turn."""
        if self.options.batches == "mixed":
            return super().plan(lab)
        tasks = list(lab.tasks)
        return {tasks[lab.step % len(tasks)]: 1.0}

    def distance(self, lab: Lab, task: str) -> float:
        """The logged kl/TASK, the distance to the teacher that the method trains on."""
        return lab.notes[f"kl/{task}"]

    def student(self, lab: Lab, conditioning: Conditioning) -> Field:
        """The student's velocity field, which leaves in `outputs` what is matched."""
        return student_field(lab, conditioning, self.options.matching)

    def target(self, lab: Lab, task: str, conditioning: Conditioning) -> Field:
        """The velocity field that the student is to match, which leaves in `outputs` what is matched."""
        return target_field(lab, task, conditioning, self.options, self.options.weights)

    def anchor(self, lab: Lab, conditioning: Conditioning, x: Tensor, sigma: float | Tensor) -> Tensor | None:
        """The base's velocity [B, C, h, w] at states x; None without an anchor."""
        return lab.velocity(conditioning, None)(x, sigma) if self.options.anchor else None

    def anchored(self, loss: Tensor, v: Tensor, base: Tensor | None) -> Tensor:
        """`loss` [B] plus the anchor: the weighted squared error of the student's velocity v to the base's."""
        return loss if base is None else loss + self.options.anchor * squared_error(v, base)

    @classmethod
    def trajectory_work(
        cls, spec, sampler, trained: int, teacher: int, rollout: int = 0, anchor: int = 0, kept: int = 1,
        prompts: int = 1, at_once: int | None = None,
    ) -> Work:  # fmt: skip
        """The work of one update, computed from the counts of one trajectory.

        Network calls are counted per guidance branch: `trained` are the student's with gradients, `rollout` the
        student's without, `teacher` the target's, `anchor` the base's (ignored if there is no anchor). `kept` and
        `prompts` are the latents and encoded prompts stored until the loss. `at_once` is the number of latents in the
        largest forward with gradients; by default all trajectories of a task.
        """
        options = cls.Options.model_validate(spec.params)
        trajectories, tasks = options.trajectories, len(spec.tasks)
        together = tasks if options.batches == "mixed" else 1
        own = sampler.passes(spec.sampler.guidance)
        without = (rollout + (anchor if options.anchor else 0)) * own * tasks
        without += sum(teacher * target_calls(task, spec.teacher_guidance, options, sampler) for task in spec.tasks)
        # Teachers may differ in guidance. Where tasks alternate, an update costs their mean, rounded up.
        forward = -(-without * together // tasks)
        return Work(
            Passes(trajectories * forward, trajectories * trained * own * together),
            drawn=trajectories,
            trained_at_once=at_once or trajectories,
            kept=trajectories * kept * together,
            prompts=trajectories * prompts * together,
        )


def target_calls(task: str, teacher_guidance: dict[str, float], options: DistillationOptions, sampler: Sampler) -> int:
    """Network calls of the target of a task's prompts at one state: those of its teachers, and of the base."""
    asked = asked_teachers(task, teacher_guidance, options)
    scales = [matched_scale(teacher_guidance[name], options.matching) for name in asked]
    bases = set(scales) if options.extrapolation else set()
    return sum(2 if scale is None else sampler.passes(scale) for scale in (*scales, *bases))
