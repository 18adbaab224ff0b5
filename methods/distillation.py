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
from bench.lazy import torch
from bench.sampler.distance import squared_distance
from methods.combining import CombiningMethod, CombiningOptions
from methods.merging import averaged, merge_teachers
from methods.trained_steps import trained_steps

if TYPE_CHECKING:
    from torch import Tensor


class DistillationOptions(CombiningOptions):
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

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse two different starting points, and a timestep fraction that trains no step."""
        super().check(spec, sampler)
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

    def targets(
        self, lab: Lab, task: str, conditioning: Conditioning, x: Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities of the teacher and of the base at states x [B, C, h, w].

        Without an anchor the base is not evaluated, and the second tensor is the teacher's velocity too.
        """
        target = lab.teacher(task, conditioning)(x, sigma)
        if not self.options.anchor:
            return target, target
        return target, lab.velocity(conditioning, None)(x, sigma)

    def anchored(
        self, loss: Tensor, lab: Lab, conditioning: Conditioning, x: Tensor, sigma: float | Tensor, v: Tensor
    ) -> Tensor:
        """`loss` [B] plus the anchor: the weighted squared error of the student's velocity v to the base's at x."""
        if not self.options.anchor:
            return loss
        with torch.no_grad():
            base = lab.velocity(conditioning, None)(x, sigma)
        return loss + self.options.anchor * squared_error(v, base)

    @classmethod
    def predict(cls, spec, sampler) -> int:
        """NFE of one update, from `work`."""
        work = cls.work(spec, sampler)
        assert work is not None  # every distillation method implements `work`
        return work.passes.nfe

    @classmethod
    def trajectory_work(
        cls, spec, trained: int, teacher: int, rollout: int = 0, anchor: int = 0, kept: int = 1, prompts: int = 1,
        at_once: int | None = None,
    ) -> Work:  # fmt: skip
        """The work of one update, computed from the counts of one trajectory.

        Network calls are counted per guidance branch: `trained` are the student's with gradients, `rollout` the
        student's without, `teacher` the teacher's, `anchor` the base's (ignored if there is no anchor). `kept` and
        `prompts` are the latents and encoded prompts stored until the loss. `at_once` is the number of latents in the
        largest forward with gradients; by default all trajectories of a task.
        """
        options = cls.Options.model_validate(spec.params)
        trajectories, tasks = options.trajectories, len(spec.tasks)
        together = tasks if options.batches == "mixed" else 1
        own = branches(spec.sampler.guidance)
        without = (rollout + (anchor if options.anchor else 0)) * own * tasks
        without += sum(teacher * branches(spec.teacher_guidance[task]) for task in spec.tasks)
        # Teachers may differ in guidance. Where tasks alternate, an update costs their mean, rounded up.
        forward = -(-without * together // tasks)
        return Work(
            Passes(trajectories * forward, trajectories * trained * own * together),
            drawn=trajectories,
            trained_at_once=at_once or trajectories,
            kept=trajectories * kept * together,
            prompts=trajectories * prompts * together,
        )


def branches(guidance: float) -> int:
    """Network calls per velocity: 2 with classifier-free guidance, 1 at guidance scale 1."""
    return 1 if guidance == 1 else 2


def squared_error(v: Tensor, target: Tensor) -> Tensor:
    """Mean over elements of the squared velocity difference, [B] (DiffusionOPD's code averages; its paper sums)."""
    return squared_distance(v, target) / v[0].numel()
