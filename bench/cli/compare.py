"""`bench compare`: methods, settings and seeds at one budget, as independent resumable runs in parallel."""

from dataclasses import asdict
from pathlib import Path

from bench.analysis.comparison import TARGET, Standing, standings
from bench.analysis.fronts import Front, fronts
from bench.analysis.records import Record
from bench.analysis.stats import p_text
from bench.cli.closing import write_report
from bench.cli.comparison_plan import EQUAL, Comparison, beyond_budget
from bench.cli.run import train
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import PartialError
from bench.hashing import text_hash
from bench.jobs.placement import Placement
from bench.jobs.runs import carry_out_runs
from bench.printing import Plain, terminal
from bench.store.names import EVALUATIONS
from bench.store.points import with_nfe
from bench.store.run import Run
from bench.system.files import json_bytes, write_atomic
from bench.training.teachers import locate, training_nfe

RECORDED = {"training_nfe": "training_evaluations", "teacher_nfe": "teacher_evaluations"}
"""Field of a Standing -> its key in a comparison's record, where they differ. Keys stay, so that older records can be
read."""


def compare_methods(plan: Comparison, placement: Placement) -> None:
    """Carry out the unfinished runs of a comparison, print and store the table.

    Raises PartialError at the end if some runs failed.
    """
    root, tasks, seeds, runs = plan.root, plan.tasks, plan.seeds, plan.runs
    failures = carry_out_runs(plan.named, train, placement)
    done: dict[str, list[Record]] = {}
    for line in plan.lines:
        runs_of_line = [runs[line.label, seed] for seed in seeds]
        records = [
            Record(run.summary, with_nfe(run.rows(EVALUATIONS), run.folder), run.spec.record())
            for run in runs_of_line
            if run.summary
        ]
        if records:
            done[line.label] = records
    if done:
        analytic = [label for label in done if label.startswith("opd_analytic")]
        reference = analytic[0] if analytic else next(iter(done))
        cost = _teacher_cost([run.spec for run in runs.values() if run.summary], root, plan.fingerprint)
        table = standings(done, tuple(tasks), reference, cost)
        found = fronts(done, tuple(tasks))
        labels = [line.label for line in plan.lines]
        identity = text_hash([plan.backbone, plan.fingerprint, tasks, seeds, plan.budget, labels, plan.overrides])
        path = root / f"comparison-{identity}.json"
        # Print before writing: if the file cannot be written, the table is not lost.
        print_standings(table, reference, tuple(tasks), plan.budget, plan.split, path, plan.grid)
        print_fronts(found)
        write_atomic(path, json_bytes(as_json(table, found, reference, plan.budget, runs)))
        write_report(path, root / f"report-{identity}")
    if failures:
        raise PartialError("; ".join(f"{label}: {error}" for label, error in failures.items()))


def _teacher_cost(specs: list[Spec], root: Path, fingerprint: str) -> dict[str, float]:
    """Task -> training NFE of its teacher, mean over the seeds; empty if none of the specs has teachers."""
    by_seed = {spec.seed: spec for spec in specs if spec.teachers}
    costs = []
    for spec in by_seed.values():
        teachers = locate(spec, describe(spec.backbone), root, fingerprint)
        costs.append(training_nfe(teachers))
    if not costs:
        return {}
    return {task: sum(cost[task] for cost in costs) / len(costs) for task in costs[0]}


def as_json(
    table: list[Standing], found: list[Front], reference: str, budget: int, runs: dict[tuple[str, int], Run]
) -> dict:
    """The comparison as plain data, with the folder names of all runs, also of lines without a finished run."""
    folders: dict[str, list[str]] = {}
    for (label, _), run in runs.items():
        folders.setdefault(label, []).append(run.folder.name)
    lines = []
    for line in table:
        fields = asdict(line).items()
        row = {RECORDED.get(name, name): value for name, value in fields}
        lines.append(row | {"runs": folders.pop(line.label)})
    without = [name for names in folders.values() for name in names]
    record = {"budget": budget, "reference": reference, "lines": lines, "lines_without_result": without}
    return record | ({"fronts": [asdict(front) for front in found]} if found else {})


def print_standings(
    table: list[Standing],
    reference: str,
    tasks: tuple[str, ...],
    budget: int,
    split: str,
    path: Path,
    grid: tuple[float, ...] = (),
) -> None:
    """Print the comparison to stdout; `reference` is the label of the line that the others are compared with.

    `grid`: the guidance scales from which every model has its own best, if any (evaluation.guidance_grid).
    """
    from rich.table import Table

    scales = ", ".join(f"{scale:g}" for scale in grid)
    guided = f", every model and task at its own best guidance scale of {scales}" if grid else ""
    shown = Table(title=f"{_spent(table, budget)}; {split} prompts{guided}, mean [95% interval] over seeds")
    heads = (
        "line (seeds)",
        *tasks,
        "gain recovered",
        f"minus {reference}",
        "p (Holm)",
        "family",
        "NFE to target (seeds)",
        "NFE with teachers",
    )
    for head in heads:
        shown.add_column(head, overflow="fold")
    for line in table:
        own = line.label == reference
        # The settings go on a second line, which keeps the first column narrow.
        label = line.label.replace(" ", "\n", 1)
        shown.add_row(
            f"{label} ({line.seeds})",
            *(str(line.tasks[t]) for t in tasks),
            str(line.gain),
            "" if own else str(line.against_reference),
            "" if own else _chance(line.against_reference.p),
            line.family,
            target_text(line),
            _thousands(line.training_nfe + line.teacher_nfe),
            style="bold" if own else None,
        )
    out = terminal(230)
    out.print(shown)
    _print_beside(out, table, reference)
    out.print(
        "p: Holm-adjusted within the family. primary: the paper's claims (joint RL, the cascade and PPO-style OPD, "
        "each with its recipe); exploratory: all other lines.\n"
        f"NFE to target: training NFE until the mean over seeds reaches {TARGET:.0%} of the best teacher in every "
        "task; in brackets, the seeds that reach it individually.\n"
        f"record: {path}",
        soft_wrap=True,
    )


def _spent(table: list[Standing], budget: int) -> str:
    """The training NFE of a comparison for its title; names the lines that are too far over the budget."""
    spent = {line.label: line.training_nfe for line in table if line.training_nfe}
    over = beyond_budget(budget, spent)
    if not over:
        return f"{budget:,} training NFE each"
    ends = [f"{count:,.0f}" for count in (min(spent.values()), max(spent.values()))]
    counts = " to ".join(dict.fromkeys(ends))
    return (
        f"budget {budget:,} training NFE, spent {counts}; more than {EQUAL:.0%} over budget "
        f"and not comparable: {', '.join(over)}"
    )


def _print_beside(out: Plain, table: list[Standing], reference: str) -> None:
    """Print what a mean of headline metrics can hide, and whether a line is equivalent to the reference."""
    from rich.table import Table

    metrics = list(dict.fromkeys(metric for line in table for metric in line.beside))
    measured = list(dict.fromkeys(metric for line in table for metric in line.measures))
    # NaN, which differs from itself, means that a line has no margin.
    margin = next((line.margin for line in table if line.margin == line.margin), None)
    if not metrics and not measured and margin is None:
        return
    also = "means over tasks of diversity, entropies in bits and drift, " if measured else ""
    shown = Table(title=f"stricter metrics, {also}worst task and equivalence, mean [95% interval]")
    within = []
    if margin is not None:
        within = ["worst task: gain recovered", f"p of equivalence within ±{margin:.3f} (TOST, Holm)"]
    for head in ("line", *metrics, *measured, *within):
        shown.add_column(head, overflow="fold")
    for line in table:
        share = f"{line.worst_task} {line.worst}" if line.worst_task else "-"
        chance = "" if line.label == reference else _chance(line.p_equivalent)
        shown.add_row(
            line.label,
            *(str(line.beside.get(metric, "-")) for metric in metrics),
            *(str(line.measures.get(metric, "-")) for metric in measured),
            *([share, chance] if within else []),
            style="bold" if line.label == reference else None,
        )
    out.print(shown)


def print_fronts(found: list[Front]) -> None:
    """Print the hypervolume of every front to stdout, and the lines that no other line of it dominates."""
    from rich.table import Table

    if not found:
        return
    title = "fronts: lines that differ only in params.weights, or one line for all weights; hypervolume from 0"
    shown = Table(title=f"{title} [95% interval]")
    for head in ("front (seeds)", "points", "not dominated", "hypervolume", f"minus {found[0].label}"):
        shown.add_column(head, overflow="fold")
    for front in found:
        shown.add_row(
            f"{front.label} ({front.seeds})",
            str(len(front.points)),
            "\n".join(front.best),
            str(front.hypervolume),
            "" if front is found[0] else str(front.against_first),
        )
    out = terminal(230)
    out.print(shown)
    if len({len(front.points) for front in found}) > 1:
        out.print("More points cover more volume: only fronts with as many points compare methods.\n")


def target_text(line: Standing) -> str:
    """NFE at which a line's mean reaches the target, and how many of its seeds do; a dash without teachers."""
    when = _thousands(line.time_to_target)
    return when if when == "-" else f"{when} ({line.seeds_at_target} of {line.seeds})"


def _chance(p: float) -> str:
    """A p-value as text; a dash for NaN."""
    return "-" if p != p else p_text(p)


def _thousands(count: float) -> str:
    """65280 -> "65k"; a dash for NaN, "never" for infinity."""
    if count != count:
        return "-"
    return "never" if count == float("inf") else f"{count / 1000:,.0f}k"
