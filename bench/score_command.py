"""`bench score`: score a folder of pictures that any tool made, or summarise results made elsewhere."""

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from bench.errors import BenchError, UsageError, one_line
from bench.evaluate import Evaluation
from bench.files import write_atomic
from bench.layout import Sample, load, read
from bench.registry import find, task_names
from bench.task import Task
from bench.view import view_settings

RESULTS = "results.jsonl"


def score_folder(task_name: str, source: Path, overrides: list[str], world: str, batch: int) -> None:
    """Score DIR in GenEval's layout, write a line a picture beside them, print the summary.

    GenEval's own lines are the official evaluator's results.jsonl, other tasks' results-<task>.jsonl. A results.jsonl
    instead of a folder is summarised as it is. Raises UsageError for what does not exist.
    """
    (name,) = task_names([task_name])
    if source.is_file():
        print_summary(imported(source, name), f"{source} (made elsewhere)")
        return
    if not source.is_dir():
        raise UsageError(f"no folder {source}")
    task = find("task", name)(world, view_settings(overrides, (name,), ("scorers",)).scorers.get(name))
    samples = read(source)
    result, lines, failed = scored(task, samples, batch)
    # The official scripts read results.jsonl: it is kept for verdicts.
    target = source / (RESULTS if "correct" in lines[0] else f"results-{name}.jsonl")
    write_atomic(target, "".join(json.dumps(line) + "\n" for line in lines).encode())
    print_summary(result, f"{source}, {task.scorer_name}")
    if failed:
        raise BenchError(f"{failed} of {len(samples)} pictures could not be scored; they count in no mean")


def scored(task: Task, samples: list[Sample], batch: int) -> tuple[Evaluation, list[dict], int]:
    """Every picture's metrics, the official evaluator's line for each, and how many pictures failed (NaN)."""
    rows: list[dict[str, float]] = []
    lines: list[dict] = []
    failed = 0
    loaded = ((sample, load(sample.path)) for sample in samples)
    for _, same in groupby(loaded, key=lambda pair: pair[1].shape):  # pictures of one size share a batch
        pairs = list(same)
        for start in range(0, len(pairs), batch):
            chunk = pairs[start : start + batch]
            prompts = [sample.prompt for sample, _ in chunk]
            scores = task.score(torch.stack([image for _, image in chunk]), prompts)
            metrics = {"reward": scores.rewards} | scores.metrics
            for i, (sample, _) in enumerate(chunk):
                mine = {metric: float(values[i]) for metric, values in metrics.items()}
                failed += bool(np.isnan(mine["reward"]))
                rows.append(mine)
                detail = scores.details[i] if scores.details else {}
                lines.append(official_line(sample, detail, mine))
    values = {metric: np.array([row[metric] for row in rows]) for metric in rows[0]}
    strata = np.array([sample.prompt.stratum for sample in samples])
    kept = ~np.isnan(values["reward"])
    found = Evaluation(task.name, task.headline, strata[kept], {m: v[kept] for m, v in values.items()})
    return found, lines, failed


def official_line(sample: Sample, detail: dict, metrics: dict[str, float]) -> dict:
    """A line of results.jsonl: the official keys first, then this scorer's metrics."""
    official = {"filename": str(sample.path), "tag": sample.prompt.stratum, "prompt": sample.prompt.text}
    if detail:
        official |= {"correct": bool(detail["correct"]), "reason": detail["reason"]}
    official["metadata"] = json.dumps(sample.prompt.metadata)
    if detail:
        official["details"] = json.dumps(detail["details"])
    return official | {name: None if np.isnan(value) else value for name, value in metrics.items()}


def imported(path: Path, task: str) -> Evaluation:
    """The verdicts of a results.jsonl of the official evaluator. Raises UsageError for another file."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        correct = np.array([bool(line["correct"]) for line in lines], np.float64)
        strata, prompts = np.array([line["tag"] for line in lines]), [line["prompt"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no results.jsonl of GenEval's evaluator: {one_line(error)}") from error
    if not lines:
        raise UsageError(f"{path} is empty")
    by_prompt: dict[str, float] = {}
    for prompt, verdict in zip(prompts, correct):
        by_prompt[prompt] = max(verdict, by_prompt.get(prompt, 0.0))
    any_picture = np.array([by_prompt[prompt] for prompt in prompts])
    return Evaluation(task, "official", strata, {"official": correct, "any picture of the prompt": any_picture})


def print_summary(found: Evaluation, title: str) -> None:
    """Per stratum, the mean over strata (GenEval's overall) and the mean over pictures, each with its interval."""
    from rich.console import Console
    from rich.table import Table

    strata = list(dict.fromkeys(found.strata.tolist()))
    terminal = Console(width=max(150, Console().width), highlight=False)
    terminal.print(f"{found.task}: {title}, {len(found.strata)} pictures", soft_wrap=True)
    table = Table()
    heads = ("metric", *(strata if len(strata) > 1 else []), "mean over tags" if len(strata) > 1 else "mean")
    for head in (*heads, *(["mean over pictures"] if len(strata) > 1 else [])):
        table.add_column(head)
    for metric, values in found.rows.items():
        cells = [f"{values[found.strata == s].mean():.4f}" for s in strata] if len(strata) > 1 else []
        whole = [f"{values.mean():.4f}"] if len(strata) > 1 else []
        shown = f"{metric} *" if metric == found.headline else metric
        table.add_row(shown, *cells, str(found.estimate(metric)), *whole)
    terminal.print(table)
