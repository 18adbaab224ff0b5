"""`bench eval`: score an adapter or the base at one or several guidance scales."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.api.task import SPLITS
from bench.cli.scales import scales_in
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import describe
from bench.config.scorers import view_settings
from bench.config.spec import EvaluationSpec
from bench.errors import BenchError, UsageError, explained, unknown
from bench.printing import print_published, progress_bar, terminal
from bench.registry import task_names
from bench.sampler.rollout import euler
from bench.scoring.loading import load_features, load_tasks
from bench.system.devices import best_device
from bench.system.outputs import check_folder, check_output, write_output
from bench.system.workers import refuse_several
from bench.training.evaluate import Evaluation, evaluate
from bench.training.execute import load_backbone
from bench.training.out_of_memory import memory_of
from bench.weights.hub import adapter_folder

KEPT = Path("results/runs/cache")
"""Folder of encoded prompts, shared with the runs in results/runs."""
Results = list[tuple[float, Evaluation]]
"""(guidance scale, evaluation) for each finished pair of task and scale."""


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
    """Evaluate on held-out prompts and print every metric with its interval.

    Images go to `pictures`/<task>, or to `pictures`/<task>-<scale> if there are several guidance scales; these folders
    must be new or empty. Scores are written to `output` after each task and scale, and printed even if the evaluation
    fails halfway. Raises UsageError for an unknown name or an unwritable path before anything is evaluated, and
    BenchError at the end if some images could not be scored.
    """
    refuse_several("eval")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    names = tuple(task_names(tasks))
    scales = scales_in(guidance)
    descriptor = describe(backbone_name)
    sections = ("scorers", "compute", "sampler")
    default_compute = descriptor.defaults().get("compute", {})
    view = view_settings(overrides, names, sections, descriptor.world, default_compute)
    descriptor.check(view.compute)
    levels = descriptor.levels_at(view.compute)
    sampler = euler(levels, steps, view.sampler.table, view.sampler.shift, descriptor.embedded_guidance)
    if view.compute.negative_prompt and set(scales) == {1.0}:
        raise UsageError("compute.negative_prompt has no effect at guidance scale 1: set --guidance as well")
    check_output(output)
    device = best_device()
    loaded = load_tasks(names, descriptor.world, view.scorers, device)
    work = [(task, scale) for task in loaded.values() for scale in scales]
    sizes = {name: len(task.prompts(split)) for name, task in loaded.items()}
    space = load_features(descriptor.world, view.scorers, device)
    # Reading a name raises now, before any image is drawn, if a scorer or the feature space cannot be used.
    scorers = {task.name: task.scorer_name for task in loaded.values()}
    if space:
        _ = space.name
    backbone = load_backbone(backbone_name, device, view.compute, KEPT)
    if adapter != "base":
        backbone.adapters.load("scored", adapter_folder(adapter))
    labels = {(t.name, s): t.name if len(scales) == 1 else f"{t.name}-{s:g}" for t, s in work}
    folders: dict[tuple[str, float], Path] = {}
    if pictures:
        folders = {key: pictures / label for key, label in labels.items()}
    for folder in folders.values():
        check_folder(folder)
    batch = view.compute.batch or EvaluationSpec().batch
    results: Results = []
    published: list[dict[str, float]] = []
    title = f"{adapter} on {backbone_name}, {split} prompts, {steps} Euler steps{_drawn_as(view.compute, descriptor)}"
    memory = memory_of(view.compute, batch, device, backbone_name)
    with _printed(title, results, published), _progress() as shown, memory:
        # All bars are shown from the start; each one's clock starts with its evaluation.
        bars = [shown.add_task(labels[t.name, s], total=sizes[t.name], start=False) for t, s in work]
        for bar, (task, scale) in zip(bars, work):
            shown.start_task(bar)
            result = evaluate(
                backbone,
                task,
                None if adapter == "base" else "scored",
                sampler,
                scale,
                split,
                batch,
                audit=True,
                folder=folders.get((task.name, scale)),
                listener=partial(_advance, shown, bar),
                space=space,
            )
            results.append((scale, result))
            published.append(task.published(task.prompts(split), result.rows))
            if output:
                away = {"negative_prompt": view.compute.negative_prompt} if view.compute.negative_prompt else {}
                settings = {"split": split, "steps": steps} | away
                records = [
                    {"guidance": g, "scorer": scorers[r.task]} | settings | ({"published": p} if p else {}) | r.record()
                    for (g, r), p in zip(results, published)
                ]
                _keep(output, records)
    if failed := sum(result.failed for _, result in results):
        problem = f"{failed} images could not be scored; they are left out of all means"
        causes = [f"{result.task}: {result.missing}" for _, result in results if result.missing]
        raise BenchError("; ".join([problem, *causes]))


def _drawn_as(compute: Compute, descriptor: Descriptor) -> str:
    """For a title: size and precision of the images, if they differ from the model's defaults."""
    own = (None, descriptor.own().get("compute", {}).get("resolution"))
    texts = [f"{compute.resolution} pixels"] if compute.resolution not in own else []
    if compute.precision != Compute().precision:
        texts.append(compute.precision)
    if compute.negative_prompt:
        texts.append(f"negative prompt {compute.negative_prompt!r:.60}")
    return "".join(f", {text}" for text in texts)


def _keep(output: Path, records: list[dict]) -> None:
    """Write the scores so far to `output`. Raises BenchError if that fails."""
    try:
        write_output(output, (json.dumps(records) + "\n").encode())
    except OSError as error:
        raise BenchError(f"the scores could not be stored in {explained(error)}") from error


def _progress() -> Progress:
    """Progress bars on stderr."""
    return progress_bar(MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


def _advance(shown: Progress, line: TaskID, done: int, _of: int) -> None:
    shown.update(line, completed=done)


@contextmanager
def _printed(title: str, results: Results, published: list[dict[str, float]]) -> Iterator[None]:
    """Print `results`, and the published numbers of each, on leaving the context, also after an error or interrupt."""
    try:
        yield
    finally:
        if results:
            _print(title, results)
            for (scale, result), numbers in zip(results, published):
                print_published(f"{result.task} at guidance scale {scale:g}", numbers)


def _print(title: str, results: Results) -> None:
    table = Table(title=title)
    for column in ("task", "guidance", "metric", "mean [95% interval]", "by stratum"):
        table.add_column(column)
    for scale, result in results:
        several = len(set(result.strata.tolist())) > 1
        for metric in result.rows:
            parts = result.parts(metric) if several else {}
            means = [f"{s} {part.mean():.2f}" if len(part) else f"{s} none" for s, part in parts.items()]
            shown = f"{metric} *" if metric == result.headline else metric
            table.add_row(result.task, f"{scale:g}", shown, str(result.estimate(metric)), ", ".join(means))
    terminal(130).print(table)
    if len({scale for scale, _ in results}) > 1:
        best: dict[str, tuple[float, float]] = {}
        for scale, result in results:
            value = result.estimate().value
            highest, _ = best.get(result.task, (-np.inf, 0))
            if not np.isnan(value) and value > highest:
                best[result.task] = (value, scale)
        if best:
            shown = ", ".join(f"{task} {scale:g}" for task, (_, scale) in best.items())
            print(f"best guidance scale by headline metric: {shown}")
