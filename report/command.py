"""`bench report`: run records to tables, figures and one page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Run, results or study folders, comparison-*.json, bench probe's output; or results/runs."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("results/report"),
) -> None:
    """Turn run records, and nothing else, into one page with tables and figures to paste."""
    from report.evidence import collect
    from report.page import make, write

    print(write(make(collect(paths or [Path("results/runs")])), output))
