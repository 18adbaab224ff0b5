"""`bench probe --dry-run`: what would be measured, with how many gradient estimates, and the predicted NFE."""

from pathlib import Path

from bench.cli.probe_plan import Probing, plan_probe
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.jobs.dispatch import refuse_placement
from bench.jobs.placement import Placement
from bench.printing import terminal
from bench.registry import find


def explain_probe(asked: Probing, root: Path, placement: Placement) -> None:
    """Print what a probe would do. Loads no model and writes nothing.

    Raises UsageError where measuring would.
    """
    from rich.table import Table

    members = plan_probe(asked, root)
    _, _, first = members[0]
    refuse_placement(placement, root, first.device)
    table = Table(title=f"gradient noise and interference at student {asked.student} on {', '.join(first.tasks)}")
    for head in ("method", "noise\nlevels", "gradient\nestimates", "NFE per\nestimate", "NFE"):
        table.add_column(head, overflow="fold", justify="left" if head == "method" else "right")
    points: set[tuple[str, ...]] = set()
    total, exact = 0, True
    for label, point, spec in members:
        levels = describe(spec.backbone).sampler(spec).steps
        estimates = asked.estimates(levels, reference=point not in points)
        points.add(point)
        each = estimate_nfe(spec)
        total += estimates * each
        exact = exact and _inner_updates(spec) == 1
        levels_shown = str(levels) if asked.by_sigma else "all"
        table.add_row(label.replace(" ", "\n", 1), levels_shown, f"{estimates:,}", f"{each:,}", f"{estimates * each:,}")
    out = terminal(110)
    out.print(table)
    lines = [
        f"gradient noise: {asked.states} states x {asked.draws} draws per method"
        + (", and again at each noise level" if asked.by_sigma else ""),
        f"reference gradient of {asked.methods[0]}: {asked.apart} separate states x 1 draw, at {len(points)} "
        f"{'point' if len(points) == 1 else 'points'} of the grid",
        f"interference: 2 x {asked.halves} estimates per method",
        f"predicted: {total:,} NFE in total{'' if exact else ' at most, because an estimate is one inner update'}",
    ]
    if asked.output:
        lines.append(f"measurements: {asked.output}")
    for line in lines:
        out.print(line, soft_wrap=True)


def estimate_nfe(spec: Spec) -> int:
    """NFE of one gradient estimate over all tasks; of all inner updates, of which a probe makes one."""
    # An update may train only some of the tasks, and a probe always measures all of them.
    method, sampler = find("method", spec.method), describe(spec.backbone).sampler(spec)
    return sum(method.predict(spec.model_copy(update={"tasks": (task,)}), sampler) for task in spec.tasks)


def _inner_updates(spec: Spec) -> int:
    """Number of optimiser steps per update of a probe's method."""
    method = find("method", spec.method)
    return method(method.Options.model_validate(spec.params)).inner_updates
