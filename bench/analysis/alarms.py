"""Alarms: a trained reward rises while what it stands for, or the diversity of the images, falls."""

from dataclasses import dataclass

from bench.analysis.forgetting import by_share
from bench.analysis.metric_names import DIVERSITY, REWARD, is_alarming
from bench.analysis.stats import Difference, paired_difference, stratified_means

LOST = 0.25
"""Fraction of the diversity whose loss is an alarm. Any reward narrows what a model draws; a smaller loss is usual."""
LEVEL = 0.01
"""Level of the test of a fall, divided by the number of earlier points. Ten looks at a score that does not change then
raise a false alarm in at most one of twenty runs."""
BASE = 0.0
"""The base's place among fractions of the budget."""


@dataclass(frozen=True)
class Alarm:
    """What happened between two points of a run on one task."""

    task: str
    measure: str
    """Metric that fell: a stricter score, the known utility or a diversity."""
    since: float
    """Fraction of the budget at the earlier point; 0 is the base. Of the points with a lower reward it is the one with
    the highest value of the measure."""
    at: float
    """Fraction of the budget at the latest point."""
    rise: Difference
    """The reward at the latest point minus that at the earlier one."""
    fall: Difference
    """The measure at the latest point minus that at the earlier one."""

    def __str__(self) -> str:
        since = "the base" if self.since <= BASE else f"{self.since:.0%} of the budget"
        return (
            f"alarm on {self.task}: from {since} to {self.at:.0%} the reward changed by {self.rise} while "
            f"{self.measure} changed by {self.fall}"
        )


def alarms(evaluations: list[dict], base: dict[str, dict] | None = None) -> list[Alarm]:
    """The alarms at a run's latest point, from its evaluation records; `base`: task -> the base's record, if known.

    The rise must be significant (95% interval over the run's prompts) and so must the fall (LEVEL), and a diversity
    must have lost the fraction LOST of its value. The base has the guidance scale of its record.
    """
    return joint_alarms([evaluations], base)


def joint_alarms(runs: list[list[dict]], base: dict[str, dict] | None = None) -> list[Alarm]:
    """The alarms of several runs (seeds) of one line together, paired by seed and prompt; see `alarms`."""
    start = [row | {"share": BASE} for row in (base or {}).values()]
    rows = [start + run for run in runs]
    found = []
    for task in dict.fromkeys(row["task"] for row in runs[0]):
        latest = [row for row in runs[0] if row["task"] == task][-1]
        for measure in latest["rows"]:
            if is_alarming(measure):
                is_diversity = measure.startswith(f"{DIVERSITY}@")
                alarm = _of(rows, task, measure, LOST if is_diversity else 0.0)
                found += [alarm] if alarm else []
    return found


def _of(runs: list[list[dict]], task: str, measure: str, lost: float) -> Alarm | None:
    """The alarm of one measure that has to lose at least a fraction of its value; None if there is no cause for one."""
    rewards, pictures = by_share(runs, task, REWARD)
    values, places = by_share(runs, task, measure)
    shares = sorted(rewards.keys() & values.keys())
    if len(shares) < 2:
        return None
    means = {share: float(stratified_means(values[share], places).mean()) for share in shares}
    *earlier, at = shares
    # Intervals take most of the time of a report, so they are drawn only where the means leave a cause for an alarm.
    for since in sorted(earlier, key=means.__getitem__, reverse=True):
        if means[since] - means[at] < max(0.0, lost * means[since]) or means[since] == means[at]:
            return None
        rise = paired_difference(rewards[at], rewards[since], pictures)
        if rise.low > 0:
            fall = paired_difference(values[at], values[since], places)
            # NaN, of prompts that are too few for an interval, is not below the level.
            return Alarm(task, measure, since, at, rise, fall) if fall.p < LEVEL / len(earlier) else None
    return None
