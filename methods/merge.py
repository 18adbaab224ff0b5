"""Merging the teachers' adapters, without training: weight average and task arithmetic (arXiv 2212.04089).

The weight changes B A are combined exactly and cut back to the student's rank by a truncated singular value
decomposition; averaging A and B apart, as Flow-OPD's cold start does, is not an average of weight changes.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from bench.lab import STUDENT, Lab
from bench.method import Method, Needs, Options


class MergeOptions(Options):
    """Settings of merging."""

    rule: Literal["average", "sum"] = "average"
    """average: mean of the teachers' changes. sum: task arithmetic, `scale` times their sum."""
    scale: Annotated[float, Field(gt=0)] = 1.0


class Merge(Method):
    name = "merge"
    source = "task arithmetic, arXiv 2212.04089; weight average"
    needs = Needs(teachers=True)
    Options = MergeOptions
    trains = False

    @classmethod
    def predict(cls, spec, sampler) -> int:
        return 0

    def prepare(self, lab: Lab) -> None:
        """Write the combination into the student."""
        adapters, o = lab.backbone.adapters, self.options
        factor = o.scale / (len(lab.teachers) if o.rule == "average" else 1)
        deltas = [adapters.deltas(name) for name in lab.teachers.values()]
        merged = {layer: factor * sum(delta[layer] for delta in deltas) for layer in deltas[0]}
        kept = adapters.set_deltas(STUDENT, merged)
        lab.note("energy_kept", kept)

    def collect(self, lab: Lab, task: str) -> None:
        raise NotImplementedError("merge does not train")

    def losses(self, lab: Lab, task: str, experience: None):
        raise NotImplementedError("merge does not train")
        yield torch.empty(0)
