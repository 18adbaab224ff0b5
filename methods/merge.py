"""Merging the teachers' adapters, without training: weight average and task arithmetic (arXiv 2212.04089)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bench.api.lab import Lab
from bench.api.method import Method, Needs, Options, Work
from bench.backbones.meter import Passes
from bench.lazy import torch
from methods.distillation import merge_teachers


class MergeOptions(Options):
    """Settings of merging."""

    rule: Literal["average", "sum"] = "average"
    """average: mean of the teachers' changes. sum: task arithmetic, `scale` times their sum."""
    scale: Annotated[float, Field(gt=0, le=1000)] = 1.0


class Merge(Method):
    name = "merge"
    source = "task arithmetic, arXiv 2212.04089; weight average"
    needs = Needs(teachers=True)
    Options = MergeOptions
    trains = False

    @classmethod
    def predict(cls, spec, sampler) -> int:
        return 0

    @classmethod
    def work(cls, spec, sampler) -> Work:
        return Work(Passes())

    def prepare(self, lab: Lab) -> None:
        """Write the combination into the student."""
        o = self.options
        merge_teachers(lab, o.scale / (len(lab.teachers) if o.rule == "average" else 1))

    def collect(self, lab: Lab, task: str) -> None:
        raise NotImplementedError("merge does not train")

    def losses(self, lab: Lab, task: str, experience: None):
        raise NotImplementedError("merge does not train")
        yield torch.empty(0)
