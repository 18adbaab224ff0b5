"""Merging the teachers' adapters without training: weight averaging and task arithmetic (arXiv 2212.04089)."""

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
    """average: `scale` times the mean of the teachers' weight changes. sum (task arithmetic): `scale` times the
    sum."""
    scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Factor on the merged weight change."""


class Merge(Method):
    """The student is a combination of the teachers' weight changes; nothing is trained."""

    name = "merge"
    source = "task arithmetic, arXiv 2212.04089; weight average"
    needs = Needs(teachers=True)
    Options = MergeOptions
    trains = False

    @classmethod
    def predict(cls, spec, sampler) -> int:
        """0: merging calls no network."""
        return 0

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """No passes."""
        return Work(Passes())

    def prepare(self, lab: Lab) -> None:
        """Write the merged weight change into the student."""
        o = self.options
        divisor = len(lab.teachers) if o.rule == "average" else 1
        merge_teachers(lab, o.scale / divisor)

    def collect(self, lab: Lab, task: str) -> None:
        """Never called, as `trains` is False."""
        raise NotImplementedError("merge does not train")

    def losses(self, lab: Lab, task: str, experience: None):
        """Never called, as `trains` is False."""
        raise NotImplementedError("merge does not train")
        yield torch.empty(0)  # unreachable; it makes this a generator, as the contract has it
