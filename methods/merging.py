"""Merging the teachers' weight changes into the student, layer by layer, with exact changes scale * B A.

Averaging A and B separately, as Flow-OPD's code does, does not average the weight changes. A rule gets the changes of
one layer as task -> change; a teacher that does not change the layer is missing, which every rule here takes as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.backbones.teacher_files import whole_teachers
from bench.errors import UsageError
from bench.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bench.config.spec import Spec

Changes = dict[str, "Tensor"]
"""task -> a layer's weight change."""
Weights = dict[str, float]
"""task -> relative weight, 0 or more."""


def check_mergeable(spec: Spec, what: str) -> None:
    """Raise UsageError if a teacher is a whole model; `what` merges."""
    for task in whole_teachers(spec.teachers):
        raise UsageError(
            f"{what} needs teachers that are adapters, but teachers.{task} ({spec.teachers[task]}) is a whole model"
        )


def merge_teachers(lab: Lab, rule: Callable[[Changes], Tensor]) -> None:
    """Set the student to the merged changes, reduced to its rank by a truncated singular value decomposition.

    Logs `energy_kept`, the fraction of their squared norm that the student's rank can hold.
    """
    adapters = lab.backbone.adapters
    deltas = {task: adapters.deltas(name) for task, name in lab.teachers.items()}
    # A teacher need not change every layer. The dict, unlike a set, keeps the order of layers.
    layers = dict.fromkeys(layer for delta in deltas.values() for layer in delta)
    merged = {}
    for layer in layers:
        merged[layer] = rule({task: delta[layer] for task, delta in deltas.items() if layer in delta})
    if not any(change.any() for change in merged.values()):
        raise UsageError("the merge leaves no weight change: set a higher params.density, or other weights")
    lab.note("energy_kept", adapters.set_deltas(STUDENT, merged))


def summed(changes: Changes, weights: Weights, scale: float = 1.0) -> Tensor:
    """`scale` times the sum of the changes, each times its weight: task arithmetic (arXiv 2212.04089)."""
    return scale * sum((weights[task] * change for task, change in changes.items()), start=torch.zeros(()))


def averaged(changes: Changes, weights: Weights, scale: float = 1.0) -> Tensor:
    """`scale` times the weighted mean over all tasks; at scale 1 rewarded soups (arXiv 2306.04488)."""
    return summed(changes, weights, scale / sum(weights.values()))


def elected_mean(changes: Changes, weights: Weights, scale: float = 1.0) -> Tensor:
    """`scale` times the mean, element by element, of the changes with the sign of their sum: steps 2 and 3 of TIES.

    TIES (arXiv 2306.01708, Alg. 1) has no weights. They enter sum and mean as in mergekit, so that a single weight
    above 0 gives that task's change; for equal weights the result is the paper's.
    """
    from peft.utils.merge_utils import calculate_majority_sign_mask, reshape_weight_task_tensors

    stacked = torch.stack(list(changes.values()))
    weights_T = torch.tensor([weights[task] for task in changes], dtype=stacked.dtype, device=stacked.device)
    weights_T = reshape_weight_task_tensors(stacked, weights_T)
    # A change of zero, whether trimmed or of weight 0, has no sign and does not count.
    elected = calculate_majority_sign_mask(weights_T * stacked)
    counted = (weights_T * elected).sum(0)
    return scale * (weights_T * stacked * elected).sum(0) / counted.where(counted > 0, 1)


def trimmed(changes: Changes, density: float) -> Changes:
    """Only the largest elements of each change, a fraction `density`: step 1 of TIES (arXiv 2306.01708, Alg. 1).

    They are the largest of the layer, as in peft and mergekit; the authors' code takes the largest of all layers.
    """
    from peft.utils.merge_utils import magnitude_based_pruning

    return {task: magnitude_based_pruning(change, density) for task, change in changes.items()}


def dropped(changes: Changes, density: float, generators: dict[str, np.random.Generator]) -> Changes:
    """Every element with probability `density`, divided by it, otherwise 0: DARE (arXiv 2311.03099).

    The generators draw on the CPU, so that every device and every process keeps the same elements.
    """
    kept = {}
    for task, change in changes.items():
        chosen = torch.from_numpy(generators[task].random(tuple(change.shape)) < density)
        kept[task] = change * chosen.to(change.device) / density
    return kept
