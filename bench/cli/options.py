"""Options that several commands have in common."""

from pathlib import Path
from typing import Annotated

import typer

ALL = "'all': those that count themselves in (bench list tasks)"


def _once(overrides: list[str] | None) -> list[str] | None:
    """Refuse --set values that contradict one another, as soon as they are read."""
    from bench.config.contradictions import refuse_contradicting_sets

    return refuse_contradicting_sets(overrides)


Tasks = Annotated[str, typer.Option("--tasks", help=f"Comma-separated tasks, or {ALL}.")]
Backbone = Annotated[str, typer.Option("--backbone", help="A registered backbone.")]
TasksOrPreset = Annotated[
    str | None, typer.Option("--tasks", help=f"Comma-separated tasks, or {ALL}; default: the preset's, or all.")
]
BackboneOrPreset = Annotated[
    str | None, typer.Option("--backbone", help="A backbone, or a pipeline; default: the preset's, or micro.")
]
Seeds = Annotated[str, typer.Option("--seeds", help="A seed, a range or a list: 0, 0-2, 0,3,5.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable, a key once.", callback=_once),
]
LaterSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable, the last one of a key holds."),
]
Preset = Annotated[
    Path | None, typer.Option("--preset", help="YAML of settings, a run's spec.json, or one of bench list presets.")
]
Results = Annotated[Path, typer.Option("--results", help="Folder for runs; must lie in a folder named 'results'.")]
Grid = Annotated[
    list[str] | None, typer.Option("--grid", metavar="[METHOD.]KEY=V1,V2", help="An axis of settings; more may follow.")
]
Axes = Annotated[list[str] | None, typer.Argument(metavar="[[METHOD.]KEY=V1,V2]...", help="Further axes.")]
Executor = Annotated[str, typer.Option("--executor", help="inline, local (processes here) or slurm.")]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="YAML file of what jobs ask Slurm for (bench/jobs/placement.py).")
]
Slurm = Annotated[
    list[str] | None, typer.Option("--slurm", metavar="KEY=VALUE", help="Over the profile: partition=gpu; repeatable.")
]
RUNS = Path("results/runs")


def split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
