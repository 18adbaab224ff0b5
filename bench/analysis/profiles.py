"""Performance profiles (Dolan and More 2002): on which fraction of problems a line is within a factor of the best.

A problem is a task with a seed; its cost is the training NFE until the run's held-out score reaches the task's target.
"""

import numpy as np

from bench.analysis.forgetting import score_matrix
from bench.analysis.records import Record

Profile = list[tuple[float, float]]
"""(factor, fraction of problems solved within it), at the factors where the fraction rises, the first at 1."""


def costs(records: list[Record], tasks: tuple[str, ...], targets: dict[str, float], extra: float) -> dict:
    """(seed, task) -> NFE until the target is reached, infinity if it is not; `extra` is the teachers' NFE."""
    found = {}
    for record in records:
        spent = record.summary["cost"]["evaluations"].get("training", 0)
        shares, scores_KT = score_matrix(record.evaluations, tasks)
        for place, task in enumerate(tasks):
            reached = [share for share, score in zip(shares, scores_KT[:, place]) if score >= targets[task]]
            # At least 1, for a start that is at the target already: factors are multiples.
            cost = max(1.0, min(reached) * spent + extra) if reached else np.inf
            found[record.summary["seed"], task] = cost
    return found


def profiles(solved: dict[str, dict]) -> dict[str, Profile]:
    """label -> profile over the problems that all lines have; `solved`: label -> `costs`. Empty if none is solved."""
    problems = sorted(set.intersection(*(set(found) for found in solved.values()))) if solved else []
    best = {problem: min(found[problem] for found in solved.values()) for problem in problems}
    if not any(map(np.isfinite, best.values())):
        return {}
    curves = {}
    for label, found in solved.items():
        ratios = sorted(found[problem] / best[problem] for problem in problems if np.isfinite(found[problem]))
        factors = sorted({1.0, *ratios})
        curves[label] = [(factor, sum(ratio <= factor for ratio in ratios) / len(problems)) for factor in factors]
    return curves
