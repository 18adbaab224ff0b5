"""One student for all weights of the tasks, conditioned on them (params.preference=drawn).

As in ParetoSlider (arXiv 2604.20816), every update draws a preference omega on the simplex, the student that it samples
and trains is the one at omega, and the loss is the sum of the tasks' losses times omega. Ours differs in three points:

- The condition enters through the rank of LoRA, in the manner of Panacea (arXiv 2402.02030): with T tasks the rank has
  T equal parts, whose channels are multiplied by omega_i. Panacea also has channels that no preference changes, and
  learns the scale of those that one does; ours have neither. The weight change at omega is s sum_i omega_i B_i A_i, so
  that every point of the simplex is a plain LoRA adapter and costs nothing to sample from.
- All images of an update have the same omega.
- omega is uniform on the simplex, Dirichlet(1), for any number of tasks. For three or more rewards ParetoSlider's code
  draws 50% at the vertices, 35% on the edges and 15% inside, since otherwise the reward with the strongest signal
  dominates, as it may here. There all rewards are given to the same images, while our tasks have their own prompts, so
  that a weight of 0 would waste a task's rollouts or make updates unequal in cost.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

PreferenceName = Literal["fixed", "drawn"]
SOURCE = "one student for all weights, ParetoSlider, arXiv 2604.20816; gates on the rank after Panacea, 2402.02030"


def drawn(tasks: list[str], generator: np.random.Generator) -> dict[str, float]:
    """task -> its part of a preference that is uniform on the simplex."""
    return dict(zip(tasks, generator.dirichlet([1.0] * len(tasks)).tolist()))


def lattice(tasks: list[str], divisions: int) -> dict[str, dict[str, float]]:
    """Name -> preference of every point of the simplex whose parts are multiples of 1 / `divisions`."""
    found = {}
    # A row of `divisions` stars with a bar between neighbouring tasks: each task has the stars between its bars.
    places = divisions + len(tasks) - 1
    for bars in reversed(list(combinations(range(places), len(tasks) - 1))):
        counts = [right - left - 1 for left, right in pairwise((-1, *bars, places))]
        preference = {task: count / divisions for task, count in zip(tasks, counts)}
        found["+".join(f"{task}={part:.4g}" for task, part in preference.items())] = preference
    return found


def rank_factors(preference: dict[str, float], rank: int) -> list[float]:
    """The factors of the channels of a LoRA rank, whose equal parts belong to the tasks in their order."""
    return [part for part in preference.values() for _ in range(rank // len(preference))]
