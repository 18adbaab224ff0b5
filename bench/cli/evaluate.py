"""`bench eval`: score any adapter, at one or several guidance scales."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.api.task import SPLITS
from bench.config.bounds import Guidance
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import describe
from bench.config.scorers import view_settings
from bench.config.settings import plain_number
from bench.config.spec import EvaluationSpec
from bench.errors import BenchError, UsageError, explained, unknown
from bench.printing import progress_bar, terminal
from bench.registry import task_names
from bench.sampler.rollout import euler
from bench.scoring.loading import load_tasks
from bench.system.devices import best_device
from bench.system.outputs import check_folder, check_output, write_output
from bench.training.evaluate import Evaluation, evaluate
from bench.training.execute import load_backbone
from bench.training.out_of_memory import memory_of
from bench.weights.hub import adapter_folder

KEPT = Path("results/runs/cache")
"""Where runs in this folder keep encoded prompts."""
Results = list[tuple[float, Evaluation]]
"""Guidance scale and what it gave, as far as the evaluation has come."""


def score_adapter(
    adapter: str,
    tasks: list[str],
    backbone_name: str,
    guidance: str,
    steps: int,
    split: str,
    overrides: list[str],
    output: Path | None,
    pictures: Path | None,
) -> None:
    """Print every metric with its interval. Raises UsageError for what does not exist or cannot be written.

    Pictures go to `pictures`/<task>, at several guidance scales to `pictures`/<task>-<scale>, which must be new or
    empty. Scores are written to `output` as they come, and printed however far the evaluation gets.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    names = tuple(task_names(tasks))
    scales = _scales(guidance)
    descriptor = describe(backbone_name)
    sections = ("scorers", "compute", "sampler")
    view = view_settings(overrides, names, sections, descriptor.world, descriptor.defaults().get("compute", {}))
    descriptor.check(view.compute)
    sampler = euler(steps, view.sampler.shift or descriptor.shift, view.sampler.table)
    check_output(output)
    device = best_device()
    loaded = load_tasks(names, descriptor.world, view.scorers, device)
    work = [(task, scale) for task in loaded.values() for scale in scales]
    sizes = {name: len(task.prompts(split)) for name, task in loaded.items()}
    for task in loaded.values():
        _ = task.scorer_name  # a scorer that is not there is missed now
    backbone = load_backbone(backbone_name, device, view.compute, KEPT)
    if adapter != "base":
        backbone.adapters.load("scored", adapter_folder(adapter))
    label = lambda name, scale: name if len(scales) == 1 else f"{name}-{scale:g}"  # noqa: E731
    folders = {(t.name, s): pictures / label(t.name, s) if pictures else None for t, s in work}
    for folder in filter(None, folders.values()):
        check_folder(folder)
    batch = view.compute.batch or EvaluationSpec().batch
    results: Results = []
    title = f"{adapter} on {backbone_name}, {split} prompts, {steps} Euler steps{_drawn_as(view.compute, descriptor)}"
    with _printed(title, results), _progress() as shown, memory_of(view.compute, batch, device, backbone_name):
        lines = [shown.add_task(label(t.name, s), total=sizes[t.name], start=False) for t, s in work]
        for line, (task, scale) in zip(lines, work):
            shown.start_task(line)
            result = evaluate(
                backbone, task, None if adapter == "base" else "scored", sampler, scale, split, batch, audit=True,
                folder=folders[task.name, scale], listener=partial(_advance, shown, line),
            )  # fmt: skip
            results.append((scale, result))
            if output:
                _keep(output, [{"guidance": g, "split": split, "steps": steps} | r.record() for g, r in results])
    if failed := sum(result.failed for _, result in results):
        without = [f"{result.task}: {result.missing}" for _, result in results if result.missing]
        raise BenchError("; ".join([f"{failed} pictures could not be scored; they count in no mean", *without]))


def _drawn_as(compute: Compute, descriptor: Descriptor) -> str:
    """Size and precision of the pictures where they are not the model's own, for a title."""
    own = (None, descriptor.own().get("compute", {}).get("resolution"))
    told = [f"{compute.resolution} pixels"] if compute.resolution not in own else []
    told += [compute.precision] if compute.precision != Compute().precision else []
    return "".join(f", {text}" for text in told)


def _scales(guidance: str) -> list[float]:
    """Raises UsageError for what is no scale, and for two that tables and folders would call by one name."""
    scales = []
    for part in guidance.split(","):
        try:
            scales.append(plain_number(part.strip()))
        except ValueError as error:
            raise UsageError(f"--guidance {part.strip()} is no plain decimal number") from error
    try:
        TypeAdapter(list[Guidance]).validate_python(scales)
    except ValidationError as error:
        problem = error.errors()[0]
        which, said = scales[int(problem["loc"][0])], problem["msg"][0].lower() + problem["msg"][1:]
        raise UsageError(f"--guidance {which:g}: {said}") from error
    names = [f"{abs(scale):g}" for scale in scales]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--guidance {guidance} names the scale {twice} twice, to the digits that are shown")
    return scales


def _keep(output: Path, records: list[dict]) -> None:
    try:
        write_output(output, (json.dumps(records) + "\n").encode())
    except OSError as error:
        raise BenchError(f"the scores could not be stored in {explained(error)}") from error


def _progress() -> Progress:
    """Bars on stderr, a line for each task and scale."""
    return progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


def _advance(shown: Progress, line: TaskID, done: int, _of: int) -> None:
    shown.update(line, completed=done)


@contextmanager
def _printed(title: str, results: Results) -> Iterator[None]:
    """Print what there is of `results` at the end, also where an error ends the evaluation."""
    try:
        yield
    finally:
        if results:
            _print(title, results)


def _print(title: str, results: Results) -> None:
    table = Table(title=title)
    for column in ("task", "guidance", "metric", "mean [95% interval]", "by stratum"):
        table.add_column(column)
    for scale, result in results:
        for metric in result.rows:
            parts = result.parts(metric) if len(set(result.strata.tolist())) > 1 else {}
            split_up = ", ".join(f"{s} {part.mean():.2f}" if len(part) else f"{s} none" for s, part in parts.items())
            shown = f"{metric} *" if metric == result.headline else metric
            table.add_row(result.task, f"{scale:g}", shown, str(result.estimate(metric)), split_up)
    terminal(130).print(table)
    if len({scale for scale, _ in results}) > 1:
        best: dict[str, tuple[float, float]] = {}
        for scale, result in results:
            value = result.estimate().value
            if not np.isnan(value) and value > best.get(result.task, (-np.inf, 0))[0]:
                best[result.task] = (value, scale)
        if best:
            shown = ", ".join(f"{task} {scale:g}" for task, (_, scale) in best.items())
            print(f"best guidance by headline: {shown}")
