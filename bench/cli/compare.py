"""`bench compare`: methods, settings and seeds at one budget, as independent resumable runs on the cores there are."""

import re
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from bench.analysis.comparison import TARGET, Standing, standings
from bench.analysis.records import Record
from bench.analysis.stats import p_text
from bench.cli.closing import write_report
from bench.config.contradictions import leaves, refuse_contradictions
from bench.config.settings import parse_override
from bench.config.spec import Spec, describe, resolve
from bench.errors import PartialError, UsageError, unknown
from bench.hashing import text_hash
from bench.jobs.placement import Placement
from bench.jobs.runs import carry_out_runs
from bench.printing import Plain, note, terminal
from bench.registry import find, registered, task_names
from bench.store.run import Run
from bench.system.files import json_bytes, results_root, write_atomic
from bench.training.teacher_sets import check_teachers, taught_otherwise
from bench.training.teachers import locate, training_evaluations

POINTS = 6
"""Evaluations along the budget, for anytime curves; thirds are among them, where a cascade of three changes task."""
TEACHERS = re.compile(r"\s*(teachers|teacher_guidance)\s*[.=]")
"""Settings of teachers."""
EQUAL = 0.05
"""Relative difference up to which two costs count as equal, as in the report (report/lines.py)."""


@dataclass(frozen=True)
class Variant:
    """One line of a comparison: a method with its deviations from the recipe."""

    label: str
    method: str
    overrides: tuple[str, ...]
    common: tuple[str, ...] = ()
    """The part of the overrides that comes from axes all methods share."""


def variants(axes: list[str], specs: dict[str, Spec], overrides: list[str] | None = None) -> list[Variant]:
    """Every method crossed with every point of its grid. Raises UsageError for an unknown method, key or value, and
    where a key has two axes, or an axis and a value in `overrides` (--set).

    `axes` are "key=v1,v2" for every method or "method.key=v1,v2" for one; `specs` are the methods' own, in order. A
    key may be shortened to its last part where that is unambiguous: in the first method's spec, or in its owner's.
    """
    common, owned = [], {method: [] for method in specs}
    written: dict[str, dict[str, str]] = {method: {} for method in specs}
    for axis in axes:
        owner, rest = split_owner(axis, list(specs), "--grid")
        key, values = parse_axis(rest, specs[owner] if owner else next(iter(specs.values())))
        for method in [owner] if owner else specs:
            if other := written[method].get(key):
                raise UsageError(f"--grid {other} and --grid {axis} are both axes of {key}: give its values in one")
            written[method][key] = axis
        (owned[owner] if owner else common).append((key, values))
    for method in specs:
        _refuse_set_axes(written[method], overrides_of(method, list(specs), overrides or []))
    result = []
    for method in specs:
        for point in product(*([(key, value) for value in values] for key, values in common + owned[method])):
            shown = ",".join(f"{key.removeprefix('params.').removeprefix('sampler.')}={v}" for key, v in point)
            label = f"{method} {shown}" if shown else method
            settings = tuple(f"{key}={value}" for key, value in point)
            result.append(Variant(label, method, settings, settings[: len(common)]))
    return result


def _refuse_set_axes(axes: dict[str, str], overrides: list[str]) -> None:
    """Raise UsageError if --set gives a value to the key of an axis; `axes` are key -> axis as it was written."""
    for text in overrides:
        for key in leaves(parse_override(text)):
            if axis := axes.get(key):
                raise UsageError(f"--set {text} and --grid {axis} are both for {key}: give it in one of them")


def recipes(methods: list[str], tasks: list[str], backbone: str) -> dict[str, Spec]:
    """Methods' specs for the keys of a grid, without what a user sets: that may fit no kernel but the grid's."""
    return {method: resolve(method, tasks, backbone=backbone) for method in methods}


def split_owner(text: str, methods: list[str], option: str) -> tuple[str | None, str]:
    """ "opd_ppo.params.clip=0.1" -> ("opd_ppo", "params.clip=0.1"); (None, text) where no method leads.

    Raises UsageError if the method it is meant for is not among `methods`.
    """
    owner, _, rest = text.partition(".")
    if owner not in registered("method"):
        return None, text
    if owner not in methods:
        raise UsageError(f"{option} {text!r}: method {owner!r} is not among {', '.join(methods)}")
    return owner, rest


def overrides_of(method: str, methods: list[str], overrides: list[str]) -> list[str]:
    """The `--set` values of one method among several: "opd_ppo.params.clip=0.1" is for opd_ppo alone, and
    "teachers.ocr=train" for the methods that have teachers.

    Raises UsageError if the method a value is meant for is not among them, if none of them has teachers, or if the
    method's values contradict one another.
    """
    taught = [name for name in methods if find("method", name).needs.teachers]
    owned = [(text, *split_owner(text, methods, "--set")) for text in overrides]
    mine = []
    for text, owner, rest in owned:
        meant = [owner] if owner else taught if TEACHERS.match(rest) and taught else methods
        if method in meant:
            mine.append((f"--set {text}", rest))
    refuse_contradictions(mine)
    return [rest for _, rest in mine]


def parse_axis(text: str, spec: Spec) -> tuple[str, list[str]]:
    """ "eta=0,0.7" -> ("sampler.eta", ["0", "0.7"])."""
    key, equals, values = text.partition("=")
    split = [value.strip() for value in _split_values(values) if value.strip()]
    if not equals or not split:
        raise UsageError(f"--grid takes key=value,value, got {text!r}")
    if len(set(split)) != len(split):
        raise UsageError(f"--grid {text!r} names a value twice")
    full = _grid_key(key, spec)
    for value in split:
        parse_override(f"{full}={value}", "--grid")
    return full, split


def _split_values(text: str) -> list[str]:
    """ "[1,2],[3]" -> ["[1,2]", "[3]"]: split at commas that lie in no brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def _grid_key(key: str, spec: Spec) -> str:
    """The setting that a key of an axis, perhaps shortened to its last part, means. Raises UsageError."""
    known = dotted_keys(spec.model_dump())
    if key in known:
        return key
    matches = [k for k in known if k.rpartition(".")[2] == key]
    if not matches:
        raise unknown("grid key", key, {*(k.rpartition(".")[2] for k in known), *known})
    # Methods' own and sampling settings come before evaluation's.
    first = [k for k in matches if k.startswith(("params.", "sampler."))] or matches
    if len(first) > 1:
        raise UsageError(f"--grid key {key!r} could be {' or '.join(first)}; write it out")
    return first[0]


def dotted_keys(section: dict, prefix: str = "") -> list[str]:
    """Every leaf of nested settings, as --set spells it."""
    keys: list[str] = []
    for name, value in section.items():
        path = f"{prefix}{name}"
        keys += dotted_keys(value, f"{path}.") if isinstance(value, dict) and value else [path]
    return keys


def method_names(names: list[str], tasks: list[str]) -> list[str]:
    """Methods a user named; ["all"] is every registered one that can train these tasks together."""
    known = list(registered("method"))
    if not names:
        raise UsageError("the method list is empty; name methods or 'all'")
    if names == ["all"]:
        return [name for name in known if find("method", name).several_tasks or len(tasks) == 1]
    for name in names:
        if name not in known:
            raise unknown("method", name, [*known, "all"])
    if len(set(names)) != len(names):
        raise UsageError(f"a method is named twice: {', '.join(names)}")
    return names


def default_budget(tasks: list[str], backbone: str) -> int:
    """Model evaluations of analytic OPD's own recipe: what a comparison spends where nothing is said."""
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
) -> tuple[Spec, list[str]]:
    """The spec of one member, and the `bench run` arguments that give exactly it.

    Raises UsageError if the settings have a budget of their own.
    """
    told = [*overrides, *variant.overrides]
    keys = {key: text for text in told for key in leaves(parse_override(text))}
    if own := keys.get("budget", next((text for key, text in keys.items() if key.startswith("budget.")), None)):
        raise UsageError(f"{own!r}: lines are compared at one budget, which --budget sets")
    settings = [f"budget={{evaluations: {budget}}}"]
    if "evaluation.points" not in keys:
        settings.append("evaluation.points=[" + ",".join(f"{(i + 1) / POINTS:.4f}" for i in range(POINTS)) + "]")
    settings += told
    spec = resolve(variant.method, tasks, seed, backbone, overrides=settings)
    sets = [part for setting in settings for part in ("--set", setting)]
    names = ["--method", variant.method, "--tasks", ",".join(tasks), "--backbone", backbone, "--seeds", str(seed)]
    return spec, ["run", *names, *sets]


def refuse_twins(runs: dict[tuple[str, int], Run]) -> None:
    """Raise UsageError where two lines are the same runs, as of --grid lr=1e-3,0.001: they would be compared as two."""
    first: dict[Path, str] = {}
    for (label, _), run in runs.items():
        other = first.setdefault(run.folder, label)
        if other != label:
            raise UsageError(f"the lines {other!r} and {label!r} are the same runs: name their settings once")


def beyond_budget(budget: float, spent: dict[str, float]) -> dict[str, float]:
    """label -> evaluations of the lines that spend more than EQUAL beyond the budget: they do not compare with others.

    Runs end on whole updates, so that a line whose update is large beside the budget overshoots it.
    """
    return {label: count for label, count in spent.items() if count > budget * (1 + EQUAL)}


def expected(spec: Spec, budget: int) -> int:
    """Training evaluations that a run will spend: whole updates until the budget is reached."""
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
    runs = {key: Run(root, spec, fingerprint) for key, (spec, _) in members.items()}
    refuse_twins(runs)
    _refuse_splits({label: spec.evaluation.split for (label, _), (spec, _) in members.items()})
    check_teachers([spec for spec, _ in members.values()])
    note([*taught_otherwise([run.spec for run in runs.values()], root), *_overshoot(members, budget)])
    named = {f"{label}, seed {seed}": (runs[label, seed], members[label, seed][1]) for label, seed in members}
    failures = carry_out_runs(named, placement)
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
        split = next(iter(members.values()))[0].evaluation.split
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


def _overshoot(members: dict[tuple[str, int], tuple[Spec, list[str]]], budget: int) -> list[str]:
    """What to say before training of lines that will not be at the budget."""
    specs = {label: spec for (label, _), (spec, _) in members.items()}
    over = beyond_budget(budget, {label: expected(spec, budget) for label, spec in specs.items()})
    return [
        f"{label} will spend {count:,} training evaluations of --budget {budget:,}, because it ends on a whole update: "
        f"more than {EQUAL:.0%} beyond the budget it does not compare with the others; a larger --budget does"
        for label, count in over.items()
    ]


def _teacher_cost(specs: list[Spec], root: Path, fingerprint: str) -> dict[str, float]:
    """Training evaluations of each task's teacher, mean over the seeds of these specs that have teachers."""
    by_seed = {spec.seed: spec for spec in specs if spec.teachers}
    costs = [
        training_evaluations(locate(spec, describe(spec.backbone), root, fingerprint)) for spec in by_seed.values()
    ]
    return {task: sum(cost[task] for cost in costs) / len(costs) for task in costs[0]} if costs else {}


def as_json(table: list[Standing], reference: str, budget: int, runs: dict[tuple[str, int], Run]) -> dict:
    """The comparison as plain data, with the folder of every run."""
    folders: dict[str, list[str]] = {}
    for (label, _), run in runs.items():
        folders.setdefault(label, []).append(run.folder.name)
    lines = [asdict(line) | {"runs": folders.pop(line.label)} for line in table]
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
            _evaluations(line.training_evaluations + line.teacher_evaluations),
            style="bold" if own else None,
        )
    out = terminal(220)
    out.print(shown)
    _print_beside(out, table, reference)
    out.print(
        "p: Holm's correction within the family. primary: the paper's claims, joint RL, cascade and PPO-style OPD, "
        "each at its recipe; exploratory: all others.\n"
        f"to target: evaluations until the mean over seeds is at {TARGET:.0%} of the best teacher in every task; in "
        f"brackets the seeds that reach it themselves.\nrecord: {path}",
        soft_wrap=True,
    )


def _spent(table: list[Standing], budget: int) -> str:
    """What the lines spent: the budget each, or how far they are from it and which are beyond it."""
    spent = {line.label: line.training_evaluations for line in table if line.training_evaluations}
    if over := beyond_budget(budget, spent):
        counts = " to ".join(dict.fromkeys(f"{count:,.0f}" for count in (min(spent.values()), max(spent.values()))))
        return (
            f"budget {budget:,} training evaluations, spent {counts}; more than {EQUAL:.0%} beyond it "
            f"and not comparable: {', '.join(over)}"
        )
    return f"{budget:,} training evaluations each"


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
    when = _evaluations(line.time_to_target)
    return when if when == "-" else f"{when} ({line.seeds_at_target} of {line.seeds})"


def _chance(p: float) -> str:
    return "-" if p != p else p_text(p)


def _evaluations(count: float) -> str:
    if count != count:
        return "-"
    return "never" if count == float("inf") else f"{count / 1000:,.0f}k"
