"""Command-line options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.completion import presets, registered_names

ALL = "'all' for every task that bench list tasks marks \"in all\""


def _once(overrides: list[str] | None) -> list[str] | None:
    """Raise UsageError for contradictory --set values as soon as they are parsed."""
    from bench.config.contradictions import refuse_contradicting_sets

    return refuse_contradicting_sets(overrides)


Tasks = Annotated[
    str,
    typer.Option("--tasks", help=f"Tasks separated by commas, or {ALL}.", autocompletion=registered_names("task")),
]
Backbone = Annotated[
    str,
    typer.Option(
        "--backbone",
        help="A registered backbone (bench list backbones), hub:OWNER/REPO, or a path to a pipeline.",
        autocompletion=registered_names("backbone"),
    ),
]
TasksOrPreset = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help=f"Tasks separated by commas, or {ALL}. Default: the preset's tasks, or all.",
        autocompletion=registered_names("task"),
    ),
]
BackboneOrPreset = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="A registered backbone (bench list backbones), hub:OWNER/REPO, or a path to a pipeline. Default: the "
        "preset's backbone, or micro.",
        autocompletion=registered_names("backbone"),
    ),
]
Seeds = Annotated[str, typer.Option("--seeds", help="A seed, a range or a list: 0 or 0-2 or 0,3,5.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting. Repeatable, but once per key.", callback=_once
    ),
]
# For commands that take presets: there a later --set may correct an earlier one, and the command notes it.
LaterSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting. Repeatable; the last value of a key counts."),
]
Preset = Annotated[
    Path | None,
    typer.Option(
        "--preset",
        help="Settings to start from: a preset (bench list presets), a YAML file, or a run's spec.json.",
        autocompletion=presets,
    ),
]
Results = Annotated[
    Path, typer.Option("--results", help="Folder of the runs; it must be inside a folder named 'results'.")
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="[METHOD.]KEY=V1,V2",
        help="Compare these values of a setting, for all methods or for METHOD only. Repeatable.",
    ),
]
Axes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[METHOD.]KEY=V1,V2", help="Further settings to vary, written as for --grid."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and its predicted cost, then stop.")]
Executor = Annotated[
    str,
    typer.Option(
        "--executor", help="Where runs execute: inline (this process), local (processes on this machine) or slurm."
    ),
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="YAML file with the resources of jobs (bench/jobs/placement.py).")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", metavar="KEY=VALUE", help="Override one setting of the profile, such as partition=gpu. Repeatable."
    ),
]
RUNS = Path("results/runs")


def split_names(text: str) -> list[str]:
    """The names in a list separated by commas, without blanks and empty entries."""
    return [name.strip() for name in text.split(",") if name.strip()]
