"""Records as pandas frames in long form: one row per update, or per evaluated model, task and metric."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from bench.analysis.records import metric_rows, without_gaps
from bench.analysis.stats import estimate
from bench.errors import MissingError
from bench.store.names import EVALUATIONS, METRICS
from bench.system.files import described, is_file, read_record

OF_RUN = ("run", "method", "backbone", "seed")
OF_METRIC = ("task", "metric", "headline", "value", "low", "high", "images")
"""Columns of every frame of scores."""


class Recorded(Protocol):
    """What frames need of a run (bench/results/result.py)."""

    @property
    def folder(self) -> Path:
        """Its folder."""
        ...

    @property
    def spec(self) -> dict[str, Any]:
        """Its settings."""
        ...

    @property
    def summary(self) -> dict[str, Any] | None:
        """Its summary; None before its end."""
        ...

    def rows(self, log: str) -> list[dict[str, Any]]:
        """The rows of a log."""
        ...


def scores(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Final held-out scores of finished runs.

    Columns: run, method, backbone, seed, model ("student", "base", "teacher TASK"), task, metric, headline (whether it
    is the task's headline), value (mean over strata), low and high (95% interval over prompts), images, guidance (the
    scale of the model and task that was chosen from evaluation.guidance_grid; NaN without a grid).
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        with described(run.folder / "summary.json"):
            summary = run.summary or {}
            for model, tasks in summary.get("models", {}).items():
                chosen = summary.get("guidance", {}).get(model, {})
                for task, row in tasks.items():
                    place = {"model": model, "guidance": float(chosen.get(task, "nan"))}
                    rows += [_of(run) | place | found for found in _metrics_of(row)]
    return pd.DataFrame(rows, columns=[*OF_RUN, "model", *OF_METRIC, "guidance"])


def evaluations(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Held-out scores of students along training: the columns of `scores`, with step and share instead of model."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        with described(run.folder / EVALUATIONS):
            for row in run.rows(EVALUATIONS):
                place = {"step": row["step"], "share": row["share"]}
                rows += [_of(run) | place | found for found in _metrics_of(row)]
    return pd.DataFrame(rows, columns=[*OF_RUN, "step", "share", *OF_METRIC])


def metrics(runs: Iterable[Recorded]) -> pd.DataFrame:
    """One row per update of every run; counters of costs have names such as evaluations.training."""
    frames = [pd.json_normalize(run.rows(METRICS)).assign(**_of(run)) for run in runs]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def trials(study: Path | str) -> pd.DataFrame:
    """The complete trials of a study, from its summary.json: number, one column per objective and per setting.

    Raises MissingError if there is none, and DamagedError if it is invalid.
    """
    path = Path(study) / "summary.json"
    if not is_file(path):
        raise MissingError(f"{path} does not exist: the study has not finished, or this is no study's folder")
    with described(path):
        summary = read_record(path)
        rows = [
            {"trial": trial["trial"], **dict(zip(summary["objectives"], trial["values"])), **trial["settings"]}
            for trial in summary["complete"]
        ]
    return pd.DataFrame(rows)


def _of(run: Recorded) -> dict[str, Any]:
    with described(run.folder / "spec.json"):
        return {"run": run.folder.name, **{key: run.spec[key] for key in OF_RUN[1:]}}


def _metrics_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per metric of an evaluation's record; images without a value are left out."""
    found = []
    for metric in row["rows"]:
        values, design = without_gaps(*metric_rows(row, metric))
        told = estimate(values, design)
        known = {"value": told.value, "low": told.low, "high": told.high, "images": int(np.size(values))}
        found.append({"task": row["task"], "metric": metric, "headline": metric == row["headline"], **known})
    return found
