"""`bench compare --dry-run`: the lines, their runs and teachers, what exists already, and the predicted cost."""

from bench.cli.comparison_plan import Comparison
from bench.cli.forecast import (
    NOTHING,
    Forecast,
    counted,
    forecast,
    hours_lines,
    of_jobs,
    seeds_text,
    teacher_lines,
    teacher_nfe,
)
from bench.config.spec import Spec
from bench.jobs.placement import Placement
from bench.jobs.runs import plan_runs, spec_of
from bench.printing import terminal


def explain_comparison(plan: Comparison, placement: Placement) -> None:
    """Print what a comparison would do. Loads no model and writes nothing.

    Raises UsageError where carrying it out would.
    """
    from rich.table import Table

    runs = plan_runs(plan.named, placement)
    specs = {line.label: plan.runs[line.label, plan.seeds[0]].spec for line in plan.lines}
    found = {line.label: _of_line(plan, line.label) for line in plan.lines}
    whole = sum(found.values(), NOTHING)
    table = Table(title=f"{plan.budget:,} training NFE per run; {plan.split} prompts of {', '.join(plan.tasks)}")
    for head in ("line", "runs", "NFE\nper run", "NFE with\nteachers", "NFE\nto do"):
        table.add_column(head, overflow="fold", justify="left" if head in ("line", "runs") else "right")
    for label, of_line in found.items():
        each = of_line.total // len(plan.seeds)
        table.add_row(
            label.replace(" ", "\n", 1),
            "\n".join(of_line.states),
            f"{each:,}",
            _with_teachers(each, teacher_nfe(specs[label], plan.root)),
            f"{of_line.to_do:,}",
        )
    out = terminal(110)
    out.print(table)
    first = of_jobs(runs.teachers, plan.root)
    lines = [
        f"{counted(len(plan.runs), 'run')} of {seeds_text(plan.seeds)}: {', '.join(whole.states)}",
        f"training NFE of these runs: {whole.total:,} in total, {whole.to_do:,} still to do",
        *teacher_lines([run.spec for run in plan.runs.values()], runs.teachers, plan.root),
    ]
    if runs.teachers:
        lines += [
            f"trained first: {counted(len(runs.teachers), 'teacher')}, {first.to_do:,} training NFE",
            f"still to do with them: {whole.to_do + first.to_do:,} training NFE",
        ]
    lines += hours_lines(_unfinished(specs, found) | _teachers_first([spec_of(job.work) for job in runs.teachers]))
    for line in lines:
        out.print(line, soft_wrap=True)


def _of_line(plan: Comparison, label: str) -> Forecast:
    return sum((forecast(plan.runs[label, seed]) for seed in plan.seeds), NOTHING)


def _with_teachers(each: int, teachers: float) -> str:
    """NFE of one run and its teachers, as text."""
    return "not known" if teachers != teachers else f"{each + int(teachers):,}"


def _unfinished(specs: dict[str, Spec], found: dict[str, Forecast]) -> dict[str, tuple[Spec, int]]:
    """Label of a line -> its spec and the number of its unfinished runs."""
    return {label: (spec, found[label].resumed + found[label].new) for label, spec in specs.items()}


def _teachers_first(specs: list[Spec]) -> dict[str, tuple[Spec, int]]:
    """The same of the teachers that are trained first: of each task one spec, and the number of its teachers."""
    counts: dict[str, tuple[Spec, int]] = {}
    for spec in specs:
        label = f"teacher of {spec.tasks[0]}"
        counts[label] = (spec, counts.get(label, (spec, 0))[1] + 1)
    return counts
