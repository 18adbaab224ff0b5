"""`bench teach --dry-run`: the teachers to train, which of them exist, their cost and the command that uses them."""

from pathlib import Path

from bench.cli.forecast import NOTHING, counted, forecast, hours_lines
from bench.cli.teacher_use import use_lines
from bench.config.spec import Spec
from bench.jobs.placement import Placement
from bench.jobs.runs import by_label, plan_runs
from bench.prediction.cost import run_nfe
from bench.printing import terminal
from bench.training.teacher_sets import teacher_sets


def explain_teaching(specs: list[Spec], root: Path, placement: Placement) -> None:
    """Print what training these teachers would do. Loads no model and writes nothing.

    Raises UsageError where training them would.
    """
    from rich.table import Table

    runs = by_label(specs, root)
    plan = plan_runs(runs, placement)
    if placement.executor == "inline":  # where such a run would be a failed job, it is not refused
        for run in plan.waiting.values():
            run.check_place()
            if run.spec.lora.start:
                from bench.training.start import check_start

                check_start(run.spec)
    table = Table(title="teachers, trained by single-task RL")
    for head in ("task", "seed", "state", "budget", "NFE", "NFE to do"):
        table.add_column(head, overflow="fold", justify="left" if head in ("task", "state", "budget") else "right")
    found = {label: forecast(run) for label, run in (plan.finished | plan.waiting).items()}
    for label, run in runs.items():
        nfe = run_nfe(run.spec)
        known = ("not known",) * 2 if nfe is None else (f"{nfe:,}", f"{found[label].to_do:,}")
        state = found[label].state
        table.add_row(", ".join(run.spec.tasks), str(run.spec.seed), state, _budget(run.spec), *known)
    out = terminal(110)
    out.print(table)
    whole = sum(found.values(), NOTHING)
    lines = [f"{counted(len(specs), 'teacher')}: {', '.join(whole.states)}"]
    if all(run_nfe(spec) is not None for spec in specs):
        lines.append(f"training NFE: {whole.total:,} in total, {whole.to_do:,} still to do")
    lines += hours_lines({label: (run.spec, 1) for label, run in plan.waiting.items()})
    for line in [*lines, "once they are trained:", *use_lines(teacher_sets(specs, root), root)]:
        out.print(line, soft_wrap=True)


def _budget(spec: Spec) -> str:
    """The budget of a run as text, such as "100 updates"."""
    budget = spec.budget
    if budget.updates:
        return f"{budget.updates:,} updates"
    return f"{budget.nfe:,} NFE" if budget.nfe else f"{budget.seconds:,.0f} seconds"
