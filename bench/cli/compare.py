"""`bench compare`: methods, settings and seeds at one budget, as independent resumable runs on the cores there are."""

from dataclasses import asdict
from pathlib import Path

from bench.analysis.comparison import TARGET, Standing, standings
from bench.analysis.records import Record
from bench.analysis.stats import p_text
from bench.cli.closing import write_report
from bench.cli.run import train
from bench.config.contradictions import leaves
from bench.config.grid import Variant, method_names, overrides_of, recipes, variants
from bench.config.resolve import describe, resolve
from bench.config.settings import parse_override
from bench.config.spec import Spec
from bench.errors import PartialError, UsageError
from bench.hashing import text_hash
from bench.jobs.placement import Placement
from bench.jobs.runs import carry_out_runs
from bench.printing import Plain, note, terminal
from bench.registry import find, task_names
from bench.store.run import Run
from bench.system.files import json_bytes, results_root, write_atomic
from bench.training.teacher_sets import check_teachers, taught_otherwise
from bench.training.teachers import locate, training_nfe

RECORDED = {"training_nfe": "training_evaluations", "teacher_nfe": "teacher_evaluations"}
"""Names of fields in records where they differ: records keep theirs, so that older ones can be read."""
POINTS = 6
"""Evaluations along the budget, for anytime curves; thirds are among them, where a cascade of three changes task."""
EQUAL = 0.05
"""Relative difference up to which two costs count as equal, as in the report (report/lines.py)."""


def default_budget(tasks: list[str], backbone: str) -> int:
    """NFE of analytic OPD's own recipe: what a comparison spends where nothing is said."""
    spec = resolve("opd_analytic", tasks, backbone=backbone)
    per_update = find("method", "opd_analytic").predict(spec, spec.sampler.build(describe(backbone).shift))
    return per_update * (spec.budget.updates or 100)


def settle(
    variant: Variant,
    tasks: list[str],
    seed: int,
    backbone: str,
    budget: int,
    overrides: list[str],
) -> Spec:
    """The spec of one member. Raises UsageError if the settings have a budget of their own."""
    told = [*overrides, *variant.overrides]
    keys = {key: text for text in told for key in leaves(parse_override(text))}
    if own := keys.get("budget", next((text for key, text in keys.items() if key.startswith("budget.")), None)):
        raise UsageError(f"{own!r}: lines are compared at one budget, which --budget sets")
    settings = [f"budget={{nfe: {budget}}}"]
    if "evaluation.points" not in keys:
        settings.append("evaluation.points=[" + ",".join(f"{(i + 1) / POINTS:.4f}" for i in range(POINTS)) + "]")
    settings += told
    return resolve(variant.method, tasks, seed, backbone, overrides=settings)


def refuse_twins(runs: dict[tuple[str, int], Run]) -> None:
    """Raise UsageError where two lines are the same runs, as of --grid lr=1e-3,0.001: they would be compared as two."""
    first: dict[Path, str] = {}
    for (label, _), run in runs.items():
        other = first.setdefault(run.folder, label)
        if other != label:
            raise UsageError(f"the lines {other!r} and {label!r} are the same runs: name their settings once")


def beyond_budget(budget: float, spent: dict[str, float]) -> dict[str, float]:
    """label -> NFE of the lines that spend more than EQUAL beyond the budget: they do not compare with others.

    Runs end on whole updates, so that a line whose update is large beside the budget overshoots it.
    """
    return {label: count for label, count in spent.items() if count > budget * (1 + EQUAL)}


def expected(spec: Spec, budget: int) -> int:
    """Training NFE that a run will spend: whole updates until the budget is reached."""
    each = find("method", spec.method).predict(spec, spec.sampler.build(describe(spec.backbone).shift))
    return -(-budget // each) * each if each else 0


def compare_methods(
    methods: list[str],
    tasks: list[str],
    backbone: str,
    seeds: list[int],
    budget: int | None,
    axes: list[str],
    overrides: list[str],
    results: Path,
    placement: Placement,
) -> None:
    """Check everything, run what is unfinished, print and store the table. Raises PartialError if some runs failed."""
    root, tasks = results_root(results), task_names(tasks)
    methods = method_names(methods, tasks)
    budget = budget or default_budget(tasks, backbone)
    own = {method: overrides_of(method, methods, overrides) for method in methods}
    lines = variants(axes, recipes(methods, tasks, backbone), overrides)
    members = {(v.label, s): settle(v, tasks, s, backbone, budget, own[v.method]) for v in lines for s in seeds}
    fingerprint = describe(backbone).fingerprint()
    runs = {key: Run(root, spec, fingerprint) for key, spec in members.items()}
    refuse_twins(runs)
    _refuse_splits({label: spec.evaluation.split for (label, _), spec in members.items()})
    check_teachers(list(members.values()))
    note([*taught_otherwise([run.spec for run in runs.values()], root), *_overshoot(members, budget)])
    failures = carry_out_runs({f"{label}, seed {seed}": run for (label, seed), run in runs.items()}, train, placement)
    groups = {
        v.label: [
            Record(run.summary, run.rows("evaluations.jsonl"), run.spec.record())
            for seed in seeds
            if (run := runs[v.label, seed]).summary
        ]
        for v in lines
    }
    done = {label: records for label, records in groups.items() if records}
    if done:
        reference = next((label for label in done if label.startswith("opd_analytic")), next(iter(done)))
        cost = _teacher_cost([run.spec for run in runs.values() if run.summary], root, fingerprint)
        table = standings(done, tuple(tasks), reference, cost)
        identity = text_hash([backbone, fingerprint, tasks, seeds, budget, [v.label for v in lines], overrides])
        path = root / f"comparison-{identity}.json"
        split = next(iter(members.values())).evaluation.split
        print_standings(table, reference, tuple(tasks), budget, split, path)  # first: the file may not be writable
        write_atomic(path, json_bytes(as_json(table, reference, budget, runs)))
        write_report(path, root / f"report-{identity}")
    if failures:
        raise PartialError("; ".join(f"{label}: {error}" for label, error in failures.items()))


def _refuse_splits(splits: dict[str, str]) -> None:
    """Raise UsageError for lines, given with their splits, that are not evaluated on the same prompts."""
    (first, split), *others = splits.items()
    for label, other in others:
        if other != split:
            raise UsageError(
                f"{first!r} is evaluated on the {split} prompts, {label!r} on the {other} prompts: lines are "
                "compared on one evaluation.split"
            )


def _overshoot(members: dict[tuple[str, int], Spec], budget: int) -> list[str]:
    """What to say before training of lines that will not be at the budget."""
    specs = {label: spec for (label, _), spec in members.items()}
    over = beyond_budget(budget, {label: expected(spec, budget) for label, spec in specs.items()})
    return [
        f"{label} will spend {count:,} training NFE of --budget {budget:,}, because it ends on a whole update: "
        f"more than {EQUAL:.0%} beyond the budget it does not compare with the others; a larger --budget does"
        for label, count in over.items()
    ]


def _teacher_cost(specs: list[Spec], root: Path, fingerprint: str) -> dict[str, float]:
    """Training NFE of each task's teacher, mean over the seeds of these specs that have teachers."""
    by_seed = {spec.seed: spec for spec in specs if spec.teachers}
    costs = [
        training_nfe(locate(spec, describe(spec.backbone), root, fingerprint)) for spec in by_seed.values()
    ]
    return {task: sum(cost[task] for cost in costs) / len(costs) for task in costs[0]} if costs else {}


def as_json(table: list[Standing], reference: str, budget: int, runs: dict[tuple[str, int], Run]) -> dict:
    """The comparison as plain data, with the folder of every run."""
    folders: dict[str, list[str]] = {}
    for (label, _), run in runs.items():
        folders.setdefault(label, []).append(run.folder.name)
    lines = []
    for line in table:
        row = {RECORDED.get(name, name): value for name, value in asdict(line).items()}
        lines.append(row | {"runs": folders.pop(line.label)})
    without = [name for names in folders.values() for name in names]
    return {"budget": budget, "reference": reference, "lines": lines, "lines_without_result": without}


def print_standings(
    table: list[Standing], reference: str, tasks: tuple[str, ...], budget: int, split: str, path: Path
) -> None:
    """The table, to stdout."""
    from rich.table import Table

    shown = Table(title=f"{_spent(table, budget)}; {split} prompts, mean [95% interval] over seeds")
    heads = (
        "method",
        *tasks,
        "share of teachers' gain",
        f"minus {reference}",
        "p (Holm)",
        "family",
        "to target (seeds)",
        "with teachers",
    )
    for head in heads:
        shown.add_column(head, overflow="fold")
    for line in table:
        own = line.label == reference
        shown.add_row(
            f"{line.label.replace(' ', chr(10), 1)} ({line.seeds})",
            *(str(line.tasks[t]) for t in tasks),
            str(line.gain),
            "" if own else str(line.against_reference),
            "" if own else _chance(line.against_reference.p),
            line.family,
            target_text(line),
            _thousands(line.training_nfe + line.teacher_nfe),
            style="bold" if own else None,
        )
    out = terminal(220)
    out.print(shown)
    _print_beside(out, table, reference)
    out.print(
        "p: Holm's correction within the family. primary: the paper's claims, joint RL, cascade and PPO-style OPD, "
        "each at its recipe; exploratory: all others.\n"
        f"to target: NFE until the mean over seeds is at {TARGET:.0%} of the best teacher in every task; in "
        f"brackets the seeds that reach it themselves.\nrecord: {path}",
        soft_wrap=True,
    )


def _spent(table: list[Standing], budget: int) -> str:
    """What the lines spent: the budget each, or how far they are from it and which are beyond it."""
    spent = {line.label: line.training_nfe for line in table if line.training_nfe}
    if over := beyond_budget(budget, spent):
        counts = " to ".join(dict.fromkeys(f"{count:,.0f}" for count in (min(spent.values()), max(spent.values()))))
        return (
            f"budget {budget:,} training NFE, spent {counts}; more than {EQUAL:.0%} beyond it "
            f"and not comparable: {', '.join(over)}"
        )
    return f"{budget:,} training NFE each"


def _print_beside(out: Plain, table: list[Standing], reference: str) -> None:
    """What a headline's mean can hide, and whether a line is equivalent to the reference."""
    from rich.table import Table

    metrics = list(dict.fromkeys(metric for line in table for metric in line.beside))
    margin = next((line.margin for line in table if line.margin == line.margin), None)
    if not metrics and margin is None:
        return
    shown = Table(title="beside the headlines, mean [95% interval]")
    within = [] if margin is None else ["worst task's share", f"p, equivalent within ±{margin:.3f} (TOST, Holm)"]
    for head in ("method", *metrics, *within):
        shown.add_column(head, overflow="fold")
    for line in table:
        share = f"{line.worst_task} {line.worst}" if line.worst_task else "-"
        chance = "" if line.label == reference else _chance(line.p_equivalent)
        shown.add_row(
            line.label,
            *(str(line.beside.get(metric, "-")) for metric in metrics),
            *([share, chance] if within else []),
            style="bold" if line.label == reference else None,
        )
    out.print(shown)


def target_text(line: Standing) -> str:
    """When a line's mean reaches the target, and how many of its seeds do; a dash without teachers."""
    when = _thousands(line.time_to_target)
    return when if when == "-" else f"{when} ({line.seeds_at_target} of {line.seeds})"


def _chance(p: float) -> str:
    return "-" if p != p else p_text(p)


def _thousands(count: float) -> str:
    if count != count:
        return "-"
    return "never" if count == float("inf") else f"{count / 1000:,.0f}k"
