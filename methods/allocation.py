"""How much each task counts in an update, adapted to how far it still is from its goal (params.allocation).

Open-MOPD (arXiv 2608.19098) finds that distillation from several teachers loses its gain to the allocation among them,
not to conflict. A method measures one distance per task and update (`CombiningMethod.distance`): in distillation the
logged kl/TASK, in RL the highest reward minus the mean. The rules use means d_i over windows of WINDOW updates, since a
single update is noisy; until there are enough windows, the factors are 1. With T tasks the factor of task i is

    by_loss       d_i / mean_j d_j: gap-following of Open-MOPD, in which the mean distance to the teacher is the gap.
    by_gap        q_i / mean_j q_j with q_i = d_i / d_i(first window), the part of the gap that remains: the relative
                  inverse training rate of GradNorm (arXiv 1711.02257, Sec. 3.2, alpha 1), here the weight itself.
    by_progress   T softmax_i(p_i / 2) with p_i = d_i / d_i(window before): dynamic weight average, arXiv 1803.10704,
                  Eq. 7. Tasks that progress slowly get more.

The first two are limited to 0.05 to 20, as in Open-MOPD. Factors multiply the given `weights`, and the products are
normalised to add up to 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api.lab import Lab

AllocationName = Literal["equal", "by_loss", "by_gap", "by_progress"]
SOURCES = {
    "by_loss": "gap-following, Open-MOPD, arXiv 2608.19098",
    "by_gap": "relative inverse training rate, GradNorm, arXiv 1711.02257, Sec. 3.2",
    "by_progress": "dynamic weight average, arXiv 1803.10704, Eq. 7",
}
"""Where each rule but `equal` comes from."""
WINDOW = 10
"""Updates whose mean distance a rule sees. Dynamic weight average takes an epoch, Open-MOPD a running mean."""
WINDOWS = {"by_loss": 1, "by_gap": 2, "by_progress": 2}
"""Windows that each rule needs before it adapts the weights."""
LEAST, MOST = 0.05, 20.0
"""Limits of the factors of by_loss and by_gap."""
TEMPERATURE = 2.0
"""The temperature of dynamic weight average in its paper."""
FLOOR = 1e-8
"""Least distance, so that ratios of distances that vanish are finite."""


def factors(rule: AllocationName, distances_UT: Tensor) -> Tensor:
    """Factors [T] of the tasks' weights from the distances [U, T] of all updates so far, float64."""
    windows = len(distances_UT) // WINDOW
    if rule == "equal" or windows < WINDOWS[rule]:
        return torch.ones(distances_UT.shape[1], dtype=torch.float64)
    means_WT = distances_UT[: windows * WINDOW].unflatten(0, (windows, WINDOW)).mean(1).clamp(min=FLOOR)
    if rule == "by_progress":
        slowness_T = means_WT[-1] / means_WT[-2]
        return len(slowness_T) * (slowness_T / TEMPERATURE).softmax(0)
    gaps_T = means_WT[-1] if rule == "by_loss" else means_WT[-1] / means_WT[0]
    return (gaps_T / gaps_T.mean()).clamp(LEAST, MOST)


class Allocation:
    """The factors of one run's tasks. Every process of a run records the same distances."""

    def __init__(self, rule: AllocationName):
        self.rule = rule
        self.distances_UT: Tensor | None = None
        """The distance of every update [U] and task [T], float64 on the CPU; None before the first update."""

    def weighted(self, weights: dict[str, float]) -> dict[str, float]:
        """Weights by task, multiplied by the factors of this update; not normalised."""
        if self.distances_UT is None:
            return weights
        found = factors(self.rule, self.distances_UT).tolist()
        return {task: weight * factor for (task, weight), factor in zip(weights.items(), found, strict=True)}

    def too_short(self) -> bool:
        """Whether the rule has not seen enough updates to adapt the weights of the next one."""
        updates = 0 if self.distances_UT is None else len(self.distances_UT)
        return self.rule != "equal" and updates < WINDOW * WINDOWS[self.rule]

    def record(self, lab: Lab, own: dict[str, float]) -> None:
        """Add an update's distances by task, which are means over this process's shard of the prompts."""
        mine = [lab.shard_fraction(task) * distance for task, distance in own.items()]
        row_T = torch.tensor(lab.workers.gather(mine), dtype=torch.float64).sum(0)
        rows = [row_T[None]] if self.distances_UT is None else [self.distances_UT, row_T[None]]
        self.distances_UT = torch.cat(rows)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs: the distances."""
        return {} if self.distances_UT is None else {"distances": self.distances_UT}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.distances_UT = state.get("distances")


def reward_gap(lab: Lab, task: str) -> float:
    """The highest possible reward of a task minus the logged mean, reward/TASK."""
    return lab.tasks[task].highest_reward - lab.notes[f"reward/{task}"]
