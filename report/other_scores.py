"""What tasks report beside their headlines: trained rewards, official verdicts and stricter scores of final models."""

import numpy as np

from bench.analysis.comparison import against
from bench.analysis.metric_names import REWARD, is_score
from report.lines import Pool
from report.measures import MEAN
from report.table import Column, Row, Table
from report.tables import References, mean_score

SAID = (
    "Scores of the images whose headlines the table of scores has, by what else a task reports of them, such as the "
    "reward that methods train on, GenEval's partial and official score, or a preference model's own output in its own "
    "unit; the headline and what repeats another score are left out. A reward may be clipped to [0, 1] where what it "
    "is made of is not (GenEval's partial score is below 0 for far too many objects). Final models, each at the "
    "guidance scale of its headline. Differences are paired by seed and prompt; intervals are 95%, not corrected, and "
    "with few seeds may exceed a score's range. An order of lines that holds by the reward and not by the headline, or "
    "the other way round, can mean that one of them was gamed, or be noise where intervals include 0. The mean is that "
    "of the rewards, over tasks."
)


def other_scores_table(pool: Pool, references: References, prefix: str) -> Table | None:
    """Scores other than the headline of all lines, the base and the teachers, by task; None if there are none."""
    reference = pool.reference()
    if reference is None:
        return None
    students = dict.fromkeys(pool.tasks, "student")
    columns = [
        Column("task", "task"),
        Column("metric", "metric"),
        Column("line", "method"),
        Column("score", "score", "score"),
        Column("against", f"minus {reference.label}", "change"),
    ]
    table = Table(f"{prefix}other-scores", f"Other scores than the headline: {pool.title}", SAID, columns)
    of_lines = [(line.label, [record.summary for record in line.records], students, line) for line in pool.lines]
    shown = [*of_lines, *((*reference_model, None) for reference_model in references)]
    every = [record.summary for line in pool.lines for record in line.records]
    others = {task: _others(every, task) for task in pool.tasks}
    listed: list[tuple[tuple[str, ...], str, str]] = []
    for task, metrics in others.items():
        listed += [((task,), task, metric) for metric in metrics]
    if any(REWARD in metrics for metrics in others.values()) and all(_has(every, task, REWARD) for task in pool.tasks):
        listed.append((pool.tasks, MEAN, REWARD))
    for tasks, name, metric in listed:
        for label, summaries, models, line in shown:
            row: Row = {"task": name, "metric": metric, "line": label}
            row["score"] = mean_score(summaries, {task: models[task] for task in tasks}, metric)
            if line and line is not reference:
                row["against"] = against(line.records, reference.records, tasks, metric)
            table.rows.append(row)
    return table if table.rows else None


def _others(summaries: list[dict], task: str) -> list[str]:
    """The scores of a task that all models have, without the headline and without those that repeat another."""
    first = summaries[0]["models"]["student"][task]
    kept = [first["headline"]]
    # The reward first: where a task's score is its reward, the reward's name says what it is used for.
    for metric in sorted(first["rows"], key=lambda metric: metric != REWARD):
        new = is_score(metric) and _has(summaries, task, metric)
        if new and not any(_same(summaries, task, metric, other) for other in kept):
            kept.append(metric)
    return kept[1:]


def _has(summaries: list[dict], task: str, metric: str) -> bool:
    return all(metric in model[task]["rows"] for summary in summaries for model in summary["models"].values())


def _same(summaries: list[dict], task: str, metric: str, other: str) -> bool:
    rows = [summary["models"]["student"][task]["rows"] for summary in summaries]
    return all(np.array_equal(row[metric], row[other]) for row in rows)
