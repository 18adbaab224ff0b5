"""Over-optimisation: a learned reward compared with the known utility that it approximates, along training.

If a task reports the utility in addition to its reward, one can see the reward rise while the utility stops rising
(Goodhart's law; Gao et al., arXiv 2210.10760, measure it the same way with a gold reward model).
"""

from dataclasses import dataclass

import numpy as np

from bench.analysis.forgetting import by_share, fall, to_the_end
from bench.analysis.metric_names import GOLD, REWARD
from bench.analysis.stats import Difference, Estimate, estimates


@dataclass(frozen=True)
class OverOptimisation:
    """Proxy and gold scores of one task over the runs (seeds) of a method."""

    task: str
    shares: list[float]
    """Fractions of the budget at which every run has both scores."""
    proxy: list[Estimate]
    """The headline metric at each point, which the student or its teachers were trained for."""
    gold: list[Estimate]
    """The known utility at each point."""
    gold_drop: Difference
    """Best gold score minus the one at the end, as in `Forgetting`; NaN if only one point was evaluated."""
    proxy_meanwhile: Difference
    """The proxy at the end minus that at the same point. Positive with a gold drop: over-optimisation."""


def over_optimisation(runs: list[list[dict]], task: str) -> OverOptimisation | None:
    """Compare the proxy and gold scores of a task; None if no point of all runs has a gold score.

    `runs` are evaluation records. The best point is chosen by the mean over seeds, as in `forgetting`.
    """
    rows = [row for run in runs for row in run if row["task"] == task and GOLD in row["rows"]]
    if not rows:
        return None
    gold, pictures = by_share(runs, task, GOLD)
    # Where the known utility is the headline, the proxy is the reward that was trained on.
    headline = rows[0]["headline"]
    proxy, _ = by_share(runs, task, REWARD if headline == GOLD else headline)
    shares = sorted(gold.keys() & proxy.keys())
    if not shares:
        return None
    gold_curve = estimates([gold[share] for share in shares], pictures)
    proxy_curve = estimates([proxy[share] for share in shares], pictures)
    best = shares[int(np.argmax([point.value for point in gold_curve]))]
    end = shares[-1]
    fell = rose = Difference.unknown()
    if to_the_end(shares):
        fell = fall(gold[best], gold[end], pictures)
        rose = fall(proxy[end], proxy[best], pictures)
    return OverOptimisation(task, shares, proxy_curve, gold_curve, fell, rose)
