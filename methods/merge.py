"""Merging the teachers' adapters without training: task arithmetic, rewarded soups, TIES and DARE."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bench.api.lab import Lab
from bench.api.method import Needs, Options, Work
from bench.backbones.meter import Passes
from bench.config.bounds import Fraction, Weight
from bench.errors import UsageError, unknown
from bench.lazy import torch
from methods.counted import CountedMethod
from methods.merging import Changes, averaged, check_mergeable, dropped, elected_mean, merge_teachers, summed, trimmed

COMBINE = {"average": averaged, "sum": summed, "ties": elected_mean, "dare_linear": averaged, "dare_ties": elected_mean}
"""Rule -> how the tasks' weight changes become one, after `ties` trimmed them and the others of SPARSE dropped some."""
SPARSE = ("ties", "dare_linear", "dare_ties")
"""The rules that keep a part of the elements of every weight change, which `density` sets."""


class MergeOptions(Options):
    """Settings of merging."""

    unsaid: ClassVar[tuple[str, ...]] = ("weights", "density")

    rule: Literal["average", "sum", "ties", "dare_linear", "dare_ties"] = "average"
    """average: `scale` times the mean of the teachers' weight changes (rewarded soups, with `weights`). sum (task
    arithmetic): `scale` times the sum. ties: of the largest elements, the mean of those with the elected sign.
    dare_linear: the mean of randomly thinned changes. dare_ties: thinned as in DARE, then with elected signs."""
    scale: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Factor on the merged weight change."""
    weights: dict[str, Weight] = Field(default={})
    """task -> relative weight of its teacher's weight change, by default 1; the weights are normalised to add up to 1,
    and a task of weight 0 is left out. Not for the sum."""
    density: Fraction = 0.2
    """Fraction of elements that ties and DARE keep of every weight change. The default is that of the TIES paper."""


class Merge(CountedMethod):
    """The student is a combination of the teachers' weight changes; nothing is trained."""

    name = "merge"
    title = "Merged teachers"
    source = "merging the teachers' weight changes, without training"
    variants: ClassVar[dict[str, str]] = {
        "params.rule=average": "weight average; with weights, rewarded soups, arXiv 2306.04488",
        "params.rule=sum": "task arithmetic, arXiv 2212.04089",
        "params.rule=ties": "TIES, arXiv 2306.01708",
        "params.rule=dare_linear": "DARE, arXiv 2311.03099",
        "params.rule=dare_ties": "DARE, arXiv 2311.03099, with the signs of TIES",
    }
    needs = Needs(teachers=True)
    Options = MergeOptions
    trains = False

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse weights of tasks that the run does not have, and settings without effect for the rule."""
        super().check(spec, sampler)
        options = MergeOptions.model_validate(spec.params)
        check_mergeable(spec, "method 'merge'")
        for task in options.weights:
            if task not in spec.tasks:
                raise unknown("task in params.weights", task, spec.tasks)
        if options.weights and options.rule == "sum":
            raise UsageError(
                "params.weights are normalised to add up to 1, which a sum is not: set params.rule average, and "
                "params.scale for its size"
            )
        if not any(options.weights.get(task, 1.0) for task in spec.tasks):
            raise UsageError("params.weights are 0 for every task: set one above 0")
        if options.density != MergeOptions().density and options.rule not in SPARSE:
            raise UsageError(
                f"params.density does nothing with params.rule {options.rule}: set params.rule to one of "
                f"{', '.join(SPARSE)}"
            )

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """No passes: merging calls no network."""
        return Work(Passes())

    def prepare(self, lab: Lab) -> None:
        """Write the merged weight change into the student."""
        o = self.options
        weights = {task: o.weights.get(task, 1.0) for task in lab.teachers}
        generators = {task: lab.numpy_generator("dare", task) for task in lab.teachers}

        def rule(changes: Changes) -> torch.Tensor:
            if o.rule == "ties":
                changes = trimmed(changes, o.density)
            elif o.rule in SPARSE:
                changes = dropped(changes, o.density, generators)
            return COMBINE[o.rule](changes, weights, o.scale)

        merge_teachers(lab, rule)

    def collect(self, lab: Lab, task: str) -> None:
        """Never called, as `trains` is False."""
        raise NotImplementedError("merge does not train")

    def losses(self, lab: Lab, task: str, experience: None):
        """Never called, as `trains` is False."""
        raise NotImplementedError("merge does not train")
        yield torch.empty(0)  # unreachable; it makes this a generator, as the contract has it
