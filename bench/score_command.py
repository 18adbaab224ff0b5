"""`bench score`: score a folder of pictures that any tool made, or summarise results made elsewhere."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.bars import bars
from bench.devices import best_device
from bench.errors import BenchError, UsageError, one_line
from bench.evaluate import Evaluation
from bench.files import write_atomic
from bench.layout import CACHE, RESULTS, Sample, left_out, load, read, world_of
from bench.loading import load_task
from bench.pictures import LARGEST
from bench.registry import task_names
from bench.score_cache import RememberingTask
from bench.scoring import FAILURE, Collected
from bench.view import view_settings


def score_folder(task_name: str, source: Path, overrides: list[str], world: str, batch: int) -> None:
    """Score DIR in GenEval's layout, write a line a picture beside them, print the summary.

    GenEval's own lines are the official evaluator's results.jsonl, other tasks' results-<task>.jsonl. A results.jsonl
    instead of a folder is summarised as it is. Raises UsageError for what does not exist, and, once the summary is
    printed, where nothing can be stored.
    """
    (name,) = task_names([task_name])
    if source.is_file():
        print_summary(imported(source, name), f"{source} (made elsewhere)")
        return
    if not source.is_dir():
        raise UsageError(f"no folder {source}")
    if (made_as := world_of(source) or world) != world:
        raise UsageError(f"the pictures in {source} are of the world {made_as!r}: add --world {made_as}")
    view = view_settings(overrides, (name,), ("scorers",), world)
    task = load_task(name, world, view.scorers.get(name), best_device())
    samples = read(source)
    task = RememberingTask(task, source / CACHE)
    result, lines, failed = scored(task, samples, batch)
    # The official scripts read results.jsonl: it is kept for verdicts, and holds nothing else.
    verdicts = [line for line in lines if "correct" in line]
    target = source / (RESULTS if verdicts else f"results-{name}.jsonl")
    lines = verdicts or lines
    unstored = None
    try:
        write_atomic(target, "".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        unstored = error.strerror or one_line(error)
    print_summary(result, f"{source}, {task.scorer_name}")
    if unstored:
        task.forgets = None  # the same said of one more file
    say_what_is_missing(left_out(source), task)
    problem = f"{len(failed)} of {len(samples)} pictures could not be scored; they count in no mean: "
    problem = problem + "; ".join(failed[:3]) if failed else ""
    if unstored:
        raise UsageError(f"the scores above could not be stored in {target}: {unstored}. {problem}".rstrip(". "))
    if problem:
        raise BenchError(problem)


def say_what_is_missing(others: list[Path], task: RememberingTask) -> None:
    """On stderr: what the folder has and the score has not, and that scores will not be remembered."""
    if others:
        first = ", ".join(str(path) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        print(
            f"note: {len(others)} left out, as GenEval's evaluator does: {first}; it takes DIR/00000/samples/0000.png "
            "(numbered folders, numbered names, .png)",
            file=sys.stderr,
        )
    if task.forgets:
        print(f"note: scores are not remembered: {task.forgets}", file=sys.stderr)


def scored(task: RememberingTask, samples: list[Sample], batch: int) -> tuple[Evaluation, list[dict], list[str]]:
    """Every picture's metrics, the official evaluator's line for each, and which failed (NaN)."""
    ordered: list[Sample] = []
    found = Collected()
    with bars(live=True) as shown:
        line = shown.add_task(task.name, total=len(samples))
        for chunk, images in batches(samples, batch):
            ordered += chunk
            if isinstance(images, UsageError):
                found.lose(len(chunk), images)
            else:
                found.add(len(chunk), partial(task.score, images, [sample.prompt for sample in chunk]))
            shown.advance(line, len(chunk))
    try:
        scores = found.whole()
    except BenchError as error:
        raise BenchError(f"no picture could be scored: {one_line(error)}") from error
    metrics = {"reward": scores.rewards} | scores.metrics
    if task.headline not in metrics:
        raise BenchError(f"the scorer of {task.name!r} gives {', '.join(metrics)}, not its headline {task.headline!r}")
    lines, failed = [], []
    for i, (sample, reward) in enumerate(zip(ordered, scores.rewards, strict=True)):
        detail = scores.details[i] if scores.details else {}
        lines.append(official_line(sample, detail, {name: float(values[i]) for name, values in metrics.items()}))
        if np.isnan(reward):
            cause = str(detail.get(FAILURE, "the scorer fails on it"))
            failed.append(cause if str(sample.path) in cause else f"{sample.path}: {cause}")
    strata = np.array([sample.prompt.stratum for sample in ordered])
    return Evaluation(task.name, task.headline, strata, metrics), lines, failed


def batches(samples: list[Sample], batch: int) -> Iterator[tuple[list[Sample], torch.Tensor | UsageError]]:
    """Pictures of one size that follow each other, at most `batch` together, and no more pixels than one picture may
    have; the reason instead for a file that is no picture."""
    chunk: list[Sample] = []
    images: list[torch.Tensor] = []
    for sample in samples:
        try:
            image = load(sample.path)
        except UsageError as error:
            image = error
        refused = isinstance(image, UsageError)
        if chunk and (refused or image.shape != images[0].shape or len(chunk) == _most(batch, image)):
            yield chunk, torch.stack(images)
            chunk, images = [], []
        if refused:
            yield [sample], image
        else:
            chunk, images = [*chunk, sample], [*images, image]
    if chunk:
        yield chunk, torch.stack(images)


def _most(batch: int, image_CHW: torch.Tensor) -> int:
    """Pictures of this size to score together."""
    return max(1, min(batch, LARGEST // image_CHW[0].numel()))


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
    from rich.console import Console
    from rich.table import Table

    strata = list(dict.fromkeys(found.strata.tolist()))
    terminal = Console(width=max(150, Console().width), highlight=False)
    terminal.print(f"{found.task}: {title}, {len(found.strata) - found.failed} pictures", soft_wrap=True)
    table = Table()
    heads = ("metric", *(strata if len(strata) > 1 else []), "mean over tags" if len(strata) > 1 else "mean")
    for head in (*heads, *(["mean over pictures"] if len(strata) > 1 else [])):
        table.add_column(head)
    for metric, values in found.rows.items():
        cells = [f"{np.nanmean(values[found.strata == s]):.4f}" for s in strata] if len(strata) > 1 else []
        whole = [f"{np.nanmean(values):.4f}"] if len(strata) > 1 else []
        shown = f"{metric} *" if metric == found.headline else metric
        table.add_row(shown, *cells, str(found.estimate(metric)), *whole)
    terminal.print(table)
