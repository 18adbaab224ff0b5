"""Over-optimisation: a learned reward against the known utility that it stands for, along training.

Where a task reports the utility beside its reward, the reward can be seen to rise while the utility no longer does
(Goodhart; Gao et al., arXiv 2210.10760, measure it the same way with a gold reward model).
"""

from dataclasses import dataclass

import numpy as np

from bench.analysis.forgetting import by_share, fall, to_the_end
from bench.analysis.stats import Difference, Estimate, estimates

GOLD = "gold"
"""Metric under which a task reports the known utility."""


@dataclass(frozen=True)
class OverOptimisation:
    """One task over the runs (seeds) of one method."""

    task: str
    shares: list[float]
    """Points of the budget that every run has."""
    proxy: list[Estimate]
    """The headline, which the reward or the teachers were trained for, at each point."""
    gold: list[Estimate]
    gold_drop: Difference
    """Best point of the gold score minus its end, as in `Forgetting`; NaN where only one was evaluated."""
    proxy_meanwhile: Difference
    """What the proxy did over the same stretch: end minus that point. Positive with a gold drop: over-optimised."""


def over_optimisation(runs: list[list[dict]], task: str) -> OverOptimisation | None:
    """Compare proxy and gold of a task; None where no point of all runs has a gold score.

    `runs` are evaluation records. The best point is that of the mean over seeds, as in `forgetting`.
    """
    rows = [row for run in runs for row in run if row["task"] == task and GOLD in row["rows"]]
    if not rows:
        return None
    gold, pictures = by_share(runs, task, GOLD)
    proxy, _ = by_share(runs, task, rows[0]["headline"])
    shares = sorted(gold.keys() & proxy.keys())
    if not shares:
        return None
    curve = estimates([gold[share] for share in shares], pictures)
    best, end = shares[int(np.argmax([e.value for e in curve]))], shares[-1]
    fell = rose = Difference.unknown()
    if to_the_end(shares):
        fell, rose = fall(gold[best], gold[end], pictures), fall(proxy[end], proxy[best], pictures)
    return OverOptimisation(task, shares, estimates([proxy[share] for share in shares], pictures), curve, fell, rose)
