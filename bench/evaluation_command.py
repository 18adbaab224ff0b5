"""`bench eval`: score any adapter, at one or several guidance scales."""

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.devices import best_device
from bench.errors import BenchError, UsageError, unknown
from bench.evaluate import Evaluation, euler, evaluate
from bench.files import write_atomic
from bench.hub import adapter_folder
from bench.loading import load_tasks
from bench.memory import memory_of
from bench.registry import task_names
from bench.runner import load_backbone
from bench.spec import EvaluationSpec, describe
from bench.task import SPLITS
from bench.view import view_settings

KEPT = Path("results/runs/cache")
"""Where runs in this folder keep encoded prompts."""


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
    """Print every metric with its interval. Raises UsageError for what does not exist.

    Pictures go to `pictures`/<task>, at several guidance scales to `pictures`/<task>-<scale>.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    names = tuple(task_names(tasks))
    try:
        scales = [float(part) for part in guidance.split(",")]
    except ValueError as error:
        raise UsageError(f"--guidance takes numbers, got {guidance!r}") from error
    if any(not 0 <= scale < float("inf") for scale in scales):
        raise UsageError(f"--guidance must be finite and at least 0, got {guidance}")
    view = view_settings(overrides, names, ("scorers", "compute"))
    descriptor = describe(backbone_name)
    sampler = euler(steps, descriptor.shift)
    device = best_device()
    backbone = load_backbone(backbone_name, device, view.compute, KEPT)
    if adapter != "base":
        backbone.adapters.load("scored", adapter_folder(adapter))
    table = Table(title=f"{adapter} on {backbone_name}, {split} prompts, {steps} Euler steps")
    for column in ("task", "guidance", "metric", "mean [95% interval]", "by stratum"):
        table.add_column(column)
    results: list[tuple[float, Evaluation]] = []
    batch = view.compute.batch or EvaluationSpec().batch
    for name, task in load_tasks(names, descriptor.world, view.scorers, device).items():
        for scale in scales:
            folder = pictures / (name if len(scales) == 1 else f"{name}-{scale:g}") if pictures else None
            scored = None if adapter == "base" else "scored"
            with memory_of(view.compute, batch, device, backbone_name):
                result = evaluate(backbone, task, scored, sampler, scale, split, batch, audit=True, folder=folder)
            results.append((scale, result))
            kept = ~np.isnan(result.rows[result.headline])
            for metric, values in result.rows.items():
                strata = dict.fromkeys(result.strata.tolist() if len(set(result.strata.tolist())) > 1 else [])
                means = {s: values[kept & (result.strata == s)].mean() for s in strata}
                split_up = ", ".join(f"{stratum} {mean:.2f}" for stratum, mean in means.items())
                shown = f"{metric} *" if metric == result.headline else metric
                table.add_row(name, f"{scale:g}", shown, str(result.estimate(metric)), split_up)
    Console(width=max(130, Console().width)).print(table)
    if len(scales) > 1:
        best = {
            task: max((r for r in results if r[1].task == task), key=lambda r: r[1].estimate().value)[0]
            for task in names
        }
        print("best guidance by headline: " + ", ".join(f"{task} {scale:g}" for task, scale in best.items()))
    if output:
        records = [{"guidance": g, "split": split, "steps": steps} | r.record() for g, r in results]
        write_atomic(output, (json.dumps(records) + "\n").encode())
    if failed := sum(result.failed for _, result in results):
        raise BenchError(f"{failed} pictures could not be scored; they count in no mean")
