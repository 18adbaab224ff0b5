"""`bench report`: run records to tables, figures and one page."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from report.evidence import Evidence


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run, results or study folders, comparison-*.json, outputs of bench probe. Default: results/runs."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder that the report is written to.")
    ] = Path("results/report"),
    diff: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--diff", help="Compare two results folders, BEFORE and AFTER: which differences exceed noise."),
    ] = None,
    hypotheses: Annotated[
        Path | None,
        typer.Option("--hypotheses", help="YAML file of hypotheses stated in advance, answered on the first page."),
    ] = None,
) -> None:
    """Turn run records into one page with tables and figures for papers."""
    from bench.errors import UsageError
    from bench.terminal import legible
    from report.evidence import collect
    from report.hypotheses_file import read_hypotheses
    from report.page import write
    from report.sections import make

    if diff and (paths or hypotheses or str(diff[1]).startswith("-")):
        raise UsageError("--diff takes exactly two results folders and nothing else: --diff BEFORE AFTER")
    stated = read_hypotheses(hypotheses) if hypotheses else None
    if diff:
        from report.diff import difference

        first, second = (path.resolve().name for path in diff)
        with without_collector():
            sets = [collect([path]) for path in diff]
            for path, evidence in zip(diff, sets):
                _tell_of_nothing(evidence, [path])
            page = write(difference(*sets), output, f"{second} against {first}")
        print(legible(str(page)))
        return
    usual = Path("results/runs")
    with without_collector():
        evidence = collect(paths or ([usual] if usual.exists() else []))
        _tell_of_nothing(evidence, paths or [usual])
        print(legible(str(write(make(evidence, stated), output))))


@contextmanager
def without_collector() -> Iterator[None]:
    """Do not look for unused objects that refer to each other: among the millions of a thousand runs that takes 2 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _tell_of_nothing(evidence: "Evidence", paths: list[Path]) -> None:
    """Print to stderr that there is nothing to report, and why."""
    from bench.terminal import legible

    if evidence:
        return
    where = legible(", ".join(map(str, paths)))
    if evidence.unread:
        told = [f"nothing could be read in {where}:", *(f"  {legible(problem)}" for problem in evidence.unread)]
    else:
        told = [f"nothing to report in {where}: no run, comparison, study or output of bench probe"]
    print("\n".join(told), file=sys.stderr)
