"""Cascade RL: one task after another in a single student (DiffusionNFT's multi-stage recipe, arXiv 2509.16117).

The budget is divided into equal stages, one per task, and each stage continues from the student that the previous stage
left. With `anchor` "previous" the engine's KL penalty pulls the student towards its weights at the start of the stage
instead of towards the base.
"""

from __future__ import annotations

from typing import Literal

from bench.api.lab import STUDENT, Lab
from bench.errors import UsageError, unknown
from bench.lazy import torch
from methods.rl.method import RlMethod, RlOptions

PREVIOUS = "previous"
"""Adapter that holds the student's weights at the start of the current stage."""


class CascadeOptions(RlOptions):
    """Settings of cascade RL."""

    order: tuple[str, ...] | None = None
    """Order in which tasks are trained; None: the order in which the run lists them."""
    anchor: Literal["base", "previous"] = "base"
    """What the KL penalty pulls towards: the base, or the student at the start of the stage."""


class Cascade(RlMethod):
    """RL on one task per stage; the stages share the budget equally."""

    name = "cascade"
    title = "Cascade RL"
    source = "staged RL, DiffusionNFT, arXiv 2509.16117, Sec. 4"
    Options = CascadeOptions

    def __init__(self, options: CascadeOptions):
        super().__init__(options)
        if options.anchor == "previous":
            self.adapters = (*self.adapters, PREVIOUS)
            self.reference = PREVIOUS

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also require a KL penalty for `anchor` previous, and an `order` that lists every task of the run once."""
        super().check(spec, sampler)
        options = cls.Options.model_validate(spec.params)
        if options.anchor == "previous" and not options.build().options.kl:
            raise UsageError(
                f"params.anchor previous has no effect without a KL penalty: set params.{options.engine}.kl above 0"
            )
        order = spec.params["order"]
        if order and sorted(order) != sorted(spec.tasks):
            for task in order:
                if task not in spec.tasks:
                    raise unknown("task in params.order", task, spec.tasks)
            raise UsageError(f"params.order must list every task of the run exactly once: {', '.join(spec.tasks)}")

    @classmethod
    def tasks_per_update(cls, spec) -> int:
        """One: a stage trains a single task."""
        return 1

    def stage(self, lab: Lab, progress: float) -> int:
        """Index of the stage at `progress`, a fraction of the budget in [0, 1]."""
        return min(int(progress * len(lab.tasks)), len(lab.tasks) - 1)

    def plan(self, lab: Lab) -> dict[str, float]:
        """Give the current stage's task all the weight; on entering a stage, copy the student to the anchor."""
        order = self.options.order or tuple(lab.tasks)
        stage = self.stage(lab, lab.progress)
        # The first stage needs no copy: the method's adapters start equal to the student.
        if self.reference and stage != self.stage(lab, lab.last_progress):
            adapters = lab.backbone.adapters
            anchor, student = adapters.parameters(PREVIOUS), adapters.parameters(STUDENT)
            with torch.no_grad():
                torch._foreach_copy_(tuple(anchor), tuple(student))
        return {order[stage]: 1.0}
