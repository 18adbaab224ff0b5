"""`bench score`: score a folder of pictures that any tool made, or summarise results made elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from bench.devices import best_device
from bench.errors import BenchError, UsageError, one_line
from bench.evaluate import Evaluation
from bench.files import write_atomic
from bench.layout import Sample, load, read
from bench.loading import load_task
from bench.registry import task_names
from bench.score_cache import RememberingTask
from bench.scoring import stacked, unscored
from bench.task import Scores
from bench.view import view_settings

RESULTS, CACHE = "results.jsonl", "scores.sqlite"


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
    view = view_settings(overrides, (name,), ("scorers",), world)
    task = load_task(name, world, view.scorers.get(name), best_device())
    samples = read(source)
    task = RememberingTask(task, source / CACHE)
    result, lines, failed = scored(task, samples, batch)
    # The official scripts read results.jsonl: it is kept for verdicts, and holds nothing else.
    verdicts = [line for line in lines if "correct" in line]
    target = source / (RESULTS if verdicts else f"results-{name}.jsonl")
    lines = verdicts or lines
    write_atomic(target, "".join(json.dumps(line) + "\n" for line in lines).encode())
    print_summary(result, f"{source}, {task.scorer_name}")
    if failed:
        raise BenchError(
            f"{len(failed)} of {len(samples)} pictures could not be scored; they count in no mean: "
            + "; ".join(failed[:3])
        )


def scored(task: RememberingTask, samples: list[Sample], batch: int) -> tuple[Evaluation, list[dict], list[str]]:
    """Every picture's metrics, the official evaluator's line for each, and which failed (NaN)."""
    lines: list[dict] = []
    unreadable: dict[Path, str] = {}
    parts: list[tuple[list[Sample], Scores | None]] = []
    for chunk, images in batches(samples, batch, unreadable):
        prompts = [sample.prompt for sample in chunk]
        parts.append((chunk, task.score(images, prompts) if images is not None else None))
    good = next((scores for _, scores in parts if scores), None)
    if good is None:
        raise BenchError(f"no picture could be scored: {next(iter(unreadable.values()))}")
    scores = stacked([scores or unscored(good) for _, scores in parts])
    metrics = {"reward": scores.rewards} | scores.metrics
    lost = np.isnan(scores.rewards)
    ordered = [sample for chunk, _ in parts for sample in chunk]
    for i, sample in enumerate(ordered):
        detail = scores.details[i] if scores.details else {}
        lines.append(official_line(sample, detail, {name: float(values[i]) for name, values in metrics.items()}))
    failed = [
        unreadable.get(sample.path, f"{sample.path}: the scorer fails on it")
        for sample, gone in zip(ordered, lost)
        if gone
    ]
    strata = np.array([sample.prompt.stratum for sample in ordered])
    return Evaluation(task.name, task.headline, strata, metrics), lines, failed


def batches(
    samples: list[Sample], batch: int, unreadable: dict[Path, str]
) -> Iterator[tuple[list[Sample], torch.Tensor | None]]:
    """Pictures of one size that follow each other, at most `batch` together; None, and a reason in `unreadable`, for a
    file that is no picture."""
    chunk: list[Sample] = []
    images: list[torch.Tensor] = []
    for sample in samples:
        try:
            image = load(sample.path)
        except UsageError as error:
            unreadable[sample.path] = one_line(error)
            image = None
        if chunk and (image is None or len(chunk) == batch or image.shape != images[0].shape):
            yield chunk, torch.stack(images)
            chunk, images = [], []
        if image is None:
            yield [sample], None
        else:
            chunk, images = [*chunk, sample], [*images, image]
    if chunk:
        yield chunk, torch.stack(images)


def official_line(sample: Sample, detail: dict, metrics: dict[str, float]) -> dict:
    """A line of results.jsonl: the official keys first, then this scorer's metrics."""
    official = {"filename": str(sample.path), "tag": sample.prompt.stratum, "prompt": sample.prompt.text}
    if "correct" in detail:
        official |= {"correct": bool(detail["correct"]), "reason": detail["reason"]}
    official["metadata"] = json.dumps(sample.prompt.metadata)
    if "correct" in detail:
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
    from rich.table import Table

    from bench.printing import terminal

    strata = list(dict.fromkeys(found.strata.tolist()))
    out = terminal(150)
    out.print(f"{found.task}: {title}, {len(found.strata) - found.failed} pictures", soft_wrap=True)
    table = Table()
    heads = ("metric", *(strata if len(strata) > 1 else []), "mean over tags" if len(strata) > 1 else "mean")
    for head in (*heads, *(["mean over pictures"] if len(strata) > 1 else [])):
        table.add_column(head)
    for metric, values in found.rows.items():
        cells = [f"{np.nanmean(values[found.strata == s]):.4f}" for s in strata] if len(strata) > 1 else []
        whole = [f"{np.nanmean(values):.4f}"] if len(strata) > 1 else []
        shown = f"{metric} *" if metric == found.headline else metric
        table.add_row(shown, *cells, str(found.estimate(metric)), *whole)
    out.print(table)
