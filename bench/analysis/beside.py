"""Estimates of the metrics beside the headlines (bench/analysis/metric_names.py), from the records of runs."""

import numpy as np

from bench.analysis.metric_names import STRICTER, is_beside, is_measure
from bench.analysis.records import model_rows
from bench.analysis.stats import Estimate, estimate, joined


def recorded(summaries: list[dict], model: str, task: str, among: str = "models") -> list[str]:
    """The metrics beside the headline that a model has in every summary, with values for some image in all of them.

    `among` is the part of the summaries that has the model, as for `model_rows`.
    """
    rows = [summary[among][model][task]["rows"] for summary in summaries]
    found = [metric for metric in rows[0] if is_beside(metric) and all(metric in row for row in rows)]
    return [metric for metric in found if _in_common([row[metric] for row in rows])]


def _in_common(values_SN: list) -> bool:
    """Whether some image has a value in every run."""
    return bool((~np.isnan(np.array(values_SN, np.float64))).all(0).any())


def metrics_beside(summaries: list[dict], models: dict[str, str]) -> dict[str, Estimate]:
    """ "task: metric" -> estimate, for the recorded metrics of STRICTER that are not the headline; `models` names each
    task's model."""
    found = {}
    for task, model in models.items():
        headline = summaries[0]["models"][model][task]["headline"]
        for metric in recorded(summaries, model, task):
            if metric in STRICTER and metric != headline:
                found[f"{task}: {metric}"] = estimate(*model_rows(summaries, model, task, metric))
    return found


def measures(summaries: list[dict], models: dict[str, str], among: str = "models") -> dict[str, Estimate]:
    """measure -> its mean over the tasks in which it is recorded; `models` names each task's model."""
    rows: dict[str, dict] = {}
    for task, model in models.items():
        for metric in filter(is_measure, recorded(summaries, model, task, among)):
            rows.setdefault(metric, {})[task] = model_rows(summaries, model, task, metric, among)
    return {metric: estimate(*joined(by_task)) for metric, by_task in rows.items()}
