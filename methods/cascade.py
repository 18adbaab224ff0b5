"""Cascade RL: task after task, each stage starting from the last (DiffusionNFT's multi-stage recipe, arXiv 2509.16117).

The budget is cut into equal stages. With `anchor` "previous" the engine's penalty pulls towards the student as it was
when the stage began, instead of towards the base.
"""

from __future__ import annotations

from typing import Literal

from bench.api.lab import STUDENT, Lab
from bench.errors import UsageError, unknown
from bench.lazy import torch
from methods.rl.method import RlMethod, RlOptions

PREVIOUS = "previous"


class CascadeOptions(RlOptions):
    """Settings of cascade RL."""

    order: tuple[str, ...] | None = None
    """Tasks in the order of training; None: as the run names them."""
    anchor: Literal["base", "previous"] = "base"


class Cascade(RlMethod):
    name = "cascade"
    source = "staged RL, DiffusionNFT, arXiv 2509.16117, Sec. 4"
    Options = CascadeOptions

    def __init__(self, options: CascadeOptions):
        super().__init__(options)
        if options.anchor == "previous":
            self.adapters = (*self.adapters, PREVIOUS)
            self.reference = PREVIOUS

    @classmethod
    def check(cls, spec, sampler) -> None:
        super().check(spec, sampler)
        options = cls.Options.model_validate(spec.params)
        if options.anchor == "previous" and not options.build().options.kl:
            raise UsageError(f"params.anchor previous acts through a penalty: set params.{options.engine}.kl above 0")
        order = spec.params["order"]
        if order and sorted(order) != sorted(spec.tasks):
            for task in order:
                if task not in spec.tasks:
                    raise unknown("task in params.order", task, spec.tasks)
            raise UsageError(f"params.order must name every task of the run once: {', '.join(spec.tasks)}")

    @classmethod
    def tasks_per_update(cls, spec) -> int:
        return 1

    def stage(self, lab: Lab, progress: float) -> int:
        return min(int(progress * len(lab.tasks)), len(lab.tasks) - 1)

    def plan(self, lab: Lab) -> dict[str, float]:
        order = self.options.order or tuple(lab.tasks)
        stage = self.stage(lab, lab.progress)
        if self.reference and stage != self.stage(lab, lab.last_progress):
            adapters = lab.backbone.adapters
            with torch.no_grad():
                torch._foreach_copy_(tuple(adapters.parameters(PREVIOUS)), tuple(adapters.parameters(STUDENT)))
        return {order[stage]: 1.0}
