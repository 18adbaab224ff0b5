"""What would count against a line although its scores are higher, and what the records say of it."""

from dataclasses import dataclass, field

import numpy as np

from bench.analysis.metric_names import DIVERSITY, DRIFT
from bench.analysis.records import model_rows, part_along
from bench.analysis.stats import Difference, joined, paired_difference
from report.hypotheses import Matched, lines_of, matched, task_gains, tasks_of
from report.hypotheses_file import Against, Stated
from report.lines import Pool


@dataclass(frozen=True)
class Weighed:
    """What the records say about one entry."""

    entry: Against
    effects: dict[str, Difference]
    """World -> difference; a lowest gain has no interval."""
    verdict: str
    """counts, no, or open."""
    lacking: list[str] = field(default_factory=list)
    """Why it is open."""


def weigh(stated: Stated, pools: list[Pool]) -> list[Weighed]:
    """What the records say about every entry, in the order of the file. Raises as `report.hypotheses.examine` does.

    An entry is open until every seed that the file names has finished.
    """
    lines = lines_of(stated, pools)
    found = []
    for entry in stated.against:
        effects: dict[str, Difference] = {}
        lacking: list[str] = []
        for world in stated.worlds:
            chosen = matched(entry, lines[world], stated.seeds(world))
            effects[world] = _effect(entry, chosen)
            lacking += [f"{world}: {text}" for text in chosen.lacking]
        verdict = "counts" if _counts(entry, effects[stated.decided_in]) else "no"
        found.append(Weighed(entry, effects, "open" if lacking else verdict, lacking))
    return found


def _counts(entry: Against, effect: Difference) -> bool:
    ends = (effect.value,) if entry.measure == "lowest gain" else (effect.low, effect.high)
    sign = 1 if entry.direction == "above" else -1
    return all(sign * end > 0 for end in ends)


def _effect(entry: Against, chosen: Matched) -> Difference:
    """The difference in one world; its value is NaN without runs, and notes what runs lack as lacking."""
    if not (chosen.first and chosen.second):
        return Difference.unknown()
    if entry.measure == "lowest gain":
        gained = task_gains(entry, chosen)
        if gained is None:
            chosen.lacking.append(f"{entry.line} has no teachers, or a single task")
            return Difference.unknown()
        first, second = (min(by_task.values()) for by_task in gained)
        return Difference(first - second, *[float("nan")] * 3)
    return _of_measure(entry, chosen)


def _of_measure(entry: Against, chosen: Matched) -> Difference:
    """Difference of a measure, paired by seed and prompt, at the guidance scale of points along training."""
    summaries = [record.summary for record in (*chosen.first, *chosen.second)]
    among, rows = part_along(summaries), {}
    for task in tasks_of(entry, chosen):
        recorded = summaries[0][among]["student"][task]["rows"]
        wanted = DRIFT if entry.measure == "drift" else f"{DIVERSITY}@"
        named = next((metric for metric in recorded if metric.startswith(wanted)), None)
        if named is None or any(named not in summary[among]["student"][task]["rows"] for summary in summaries):
            chosen.lacking.append(f"{entry.measure} on {task} is not recorded in every run")
            return Difference.unknown()
        values_SN, pictures = model_rows(summaries, "student", task, named, among)
        first, second = np.split(values_SN, 2)
        rows[task] = first - second, pictures
    values_SN, pictures = joined(rows)
    return paired_difference(values_SN, np.zeros(values_SN.shape[1]), pictures)
