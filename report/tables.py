"""The tables of a pool of lines. Each is built once from the records; figures and sentences read from them."""

import math
import shlex
from dataclasses import dataclass, field, replace

import numpy as np

from bench.analysis.beside import metrics_beside
from bench.analysis.comparison import EXPLORATORY, PRIMARY_FAMILY, Standing, against, nfe_at, standings
from bench.analysis.forgetting import by_share
from bench.analysis.overoptimisation import over_optimisation
from bench.analysis.records import Record, model_rows, score
from bench.analysis.stats import Difference, Estimate, estimate, estimates, holm, joined, stratified_mean
from report.claims import ALPHA
from report.cost_table import cost, seconds, until_target
from report.evidence import FoundRun
from report.lines import EQUAL, Line, Pool
from report.table import Column, Row, Table, cell

BASE = "base at its best guidance"
TEACHERS = "each task's own teacher"
REFERENCES = {"base": BASE, "teacher": TEACHERS}


@dataclass
class PoolTables:
    """All tables of one pool."""

    overview: Table
    names: Table
    scores: Table
    aggregates: Table
    cost: Table
    until_target: Table | None
    curves: Table
    forgetting: Table
    course: Table
    interference: Table | None
    over_optimisation: Table | None
    runs: Table
    standings: dict[str, Standing]
    reference: str
    colours: dict[str, int] = field(default_factory=dict)
    """The lines that figures show in colour -> index into the palette; filled by report/highlights.py."""


def pool_tables(pool: Pool, prefix: str) -> PoolTables:
    """Build every table of a pool, with names that begin with `prefix`."""
    reference = pool.reference()
    groups = {line.label: line.records for line in pool.lines}
    label = reference.label if reference else ""
    found: dict[str, Standing] = {}
    if reference:
        stood = standings(groups, pool.tasks, reference.label, {})
        found = {standing.label: standing for standing in stood}
    # The curves of lines in a pool that counts teachers are shown with their own budgets.
    along = replace(pool, lines=[]) if pool.whole else pool
    return PoolTables(
        overview(pool, found, prefix),
        names(pool, prefix),
        scores(pool, found, label, prefix),
        aggregates(pool, found, label, prefix),
        cost(pool, found, prefix),
        until_target(pool, prefix),
        curves(along, prefix),
        falls(along, prefix),
        course(along, prefix),
        interference(along, prefix),
        goodhart(along, prefix),
        runs(along, prefix),
        found,
        label,
    )


def overview(pool: Pool, found: dict[str, Standing], prefix: str) -> Table:
    """One row with the counts that the page's sentences use."""
    seeds = [len(line.records) for line in pool.lines]
    runs_ = [run for members in pool.folders.values() for run in members]
    row: Row = {
        "budget": pool.budget,
        "lines": len(pool.lines),
        "runs": len(runs_),
        "primary": sum(_tested(s, PRIMARY_FAMILY) for s in found.values()),
        "exploratory": sum(_tested(s, EXPLORATORY) for s in found.values()),
        "margin": next((s.margin for s in found.values()), None),
        "fewest_seeds": min(seeds, default=0),
        "most_seeds": max(seeds, default=0),
        "failed": sum(run.state == "failed" for run in pool.unfinished),
        "unfinished": sum(run.state == "unfinished" for run in pool.unfinished),
        "repeated": len(pool.repeated),
        "odd": len(pool.odd),
        "commits": len({run.commit for run in runs_ if run.commit}),
    }
    return Table(
        f"{prefix}overview",
        f"What is compared: {pool.title}",
        f"Budgets count as equal within {EQUAL:.0%} of the most common one, because training ends on a whole update. "
        "The equivalence margin is a tenth of the teachers' mean gain over the base. Damaged runs are not counted "
        "here; the page lists them.",
        [
            Column("budget", "training", "count", "NFE per run"),
            Column("lines", "lines", "count"),
            Column("primary", "primary comparisons with the reference", "count"),
            Column("exploratory", "exploratory comparisons", "count"),
            Column("margin", "equivalence margin", "score"),
            Column("fewest_seeds", "fewest seeds", "count"),
            Column("most_seeds", "most seeds", "count"),
            Column("runs", "finished runs", "count"),
            Column("failed", "failed", "count"),
            Column("unfinished", "unfinished", "count"),
            Column("repeated", "repeated", "count"),
            Column("odd", "off-budget runs", "count"),
            Column("commits", "commits", "count"),
        ],
        [row],
    )


def names(pool: Pool, prefix: str) -> Table:
    """How a command names every line."""
    table = Table(
        f"{prefix}lines",
        f"Names of lines: {pool.title}",
        "A line's name is its method's, with the variant that it is known by and the settings in which it differs from "
        "most lines of its method. The second column is how bench compare prints it.",
        [Column("line", "line"), Column("typed", "method and settings"), Column("seeds", "seeds", "count")],
    )
    for line in pool.lines:
        table.rows.append({"line": line.label, "typed": line.typed + line.beyond, "seeds": len(line.records)})
    return table


def _tested(standing: Standing, family: str) -> bool:
    return standing.family == family and not math.isnan(standing.against_reference.p)


SCORES_SAID = (
    "Scores are means with 95% intervals (bootstrap over prompts with all their images, Student's t over seeds); with "
    "few seeds an interval may exceed the range of the score. The mean score is unweighted over tasks. Gain recovered "
    "is (mean - base) / (teachers - base), with each task's own teacher and with the base at each task's best "
    "guidance scale of the searched grid (the backbone's model card gives the grid and says whether the best is at "
    "its edge). The worst task is the one with the lowest gain recovered. Metrics next to the headlines show losses "
    "that these could hide, where they were recorded: strict is GenEval's rule with exact counts, gold is the known "
    "utility behind a learned reward. Bold marks the best line of a column if it is significantly above every other "
    "line (Holm's correction within the column, p below 0.05). Differences are paired by seed and prompt over the "
    "seeds that both lines have. Their intervals are not corrected; their p-values are Holm-adjusted within a family. "
    "The primary family has the paper's comparisons: analytic OPD against joint RL, a cascade and PPO-style OPD, each "
    "with its recipe. All other lines form the exploratory family. The p-value of equivalence, in the same families, "
    "is that of two one-sided tests of a difference within plus or minus a tenth of the teachers' mean gain. A line "
    "without a significant difference is not thereby equally good. A dash means not measured, no teachers in these "
    "runs, or fewer than two shared seeds that differ."
)


def scores(pool: Pool, found: dict[str, Standing], reference: str, prefix: str) -> Table:
    """Scores of lines, base and teachers by task; bold where a line is significantly above every other one."""
    heads = _headlines(pool)
    columns = [Column("line", "method"), Column("seeds", "seeds", "count")]
    columns += [Column(task, f"{task}: {heads[task]}", "score") for task in pool.tasks]
    beside = list(dict.fromkeys(metric for standing in found.values() for metric in standing.beside))
    columns += [
        Column("mean", "mean score", "score"),
        Column("gain", "gain recovered", "share"),
        Column("worst_task", "worst task"),
        Column("worst", "its gain recovered", "share"),
        *(Column(metric, metric, "score") for metric in beside),
        Column("against", f"mean minus {reference}", "change"),
        Column("p", "p (Holm)", "p"),
        Column("family", "family"),
        Column("p_equivalent", "p for equivalence (Holm)", "p"),
    ]
    table = Table(
        f"{prefix}scores",
        f"Held-out scores at equal compute: {pool.title}",
        SCORES_SAID,
        columns,
    )
    for line in pool.lines:
        standing = found[line.label]
        own = line.label == reference
        summaries = [r.summary for r in line.records]
        row: Row = {"line": line.label, "seeds": len(line.records)}
        row["mean"] = mean_score(summaries, dict.fromkeys(pool.tasks, "student"))
        row |= dict(standing.tasks) | {"gain": standing.gain} | dict(standing.beside)
        if standing.worst_task:
            row |= {"worst_task": standing.worst_task, "worst": standing.worst}
        if not own:
            row |= {"against": standing.against_reference, "p": standing.against_reference.p}
            row |= {"family": standing.family, "p_equivalent": standing.p_equivalent}
        table.rows.append(row)
    # Before base and teachers are added: they are not lines and cannot win a column.
    for key in (*pool.tasks, "mean"):
        index = _clear_winner(pool, key)
        if index is not None:
            table.strong.add((index, key))
    for label, summaries, models in references(pool):
        row = {"line": label, "seeds": None, "mean": mean_score(summaries, models)}
        for task, model in models.items():
            row[task] = estimate(*model_rows(summaries, model, task))
        table.rows.append({**row, **metrics_beside(summaries, models)})
    return table


def _headlines(pool: Pool) -> dict[str, str]:
    models = pool.lines[0].records[0].summary["models"] if pool.lines else {}
    return {task: models["student"][task]["headline"] if models else "score" for task in pool.tasks}


def mean_score(summaries: list[dict], models: dict[str, str], metric: str | None = None) -> Estimate:
    """Unweighted mean over tasks of the model given for each, with its interval over seeds and prompts.

    Of the headlines, or of another metric that all tasks have.
    """
    by_task = {task: model_rows(summaries, model, task, metric) for task, model in models.items()}
    return estimate(*joined(by_task))


def _clear_winner(pool: Pool, key: str) -> int | None:
    """Index of the best line if it is significantly above all others, otherwise None."""
    if len(pool.lines) < 2:
        return None
    tasks = pool.tasks if key == "mean" else (key,)
    means = []
    for line in pool.lines:
        scored = [student_score(line.records, task) for task in tasks]
        means.append(float(np.mean(scored)))
    best = int(np.argmax(means))
    own = pool.lines[best].records
    chances = []
    # The closest rivals first: one that is not below settles the question, and corrected p-values are no smaller.
    for index in sorted((i for i in range(len(means)) if i != best), key=lambda i: -means[i]):
        gap = against(own, pool.lines[index].records, tasks)
        # With one shared seed p is NaN, which says nothing about the methods. Seeds that both lines have may reverse
        # the order of the means over all seeds.
        if not (gap.p < ALPHA and gap.value > 0):
            return None
        chances.append(gap.p)
    return best if all(p < ALPHA for p in holm(chances)) else None


def student_score(records: list[Record], task: str) -> float:
    """The student's final score, averaged over runs."""
    students = [record.summary["models"]["student"] for record in records]
    return float(np.mean([score(student[task]) for student in students]))


References = list[tuple[str, list[dict], dict[str, str]]]
"""(label, summaries, task -> model) of the base and the teachers."""


def references(pool: Pool) -> References:
    """The base and the teachers, from the line that evaluated most of them."""
    if not pool.lines:
        return []

    def evaluated(line: Line) -> tuple[int, int]:
        return len(line.records[0].summary["models"]), len(line.records)

    shows = max(pool.lines, key=evaluated)
    summaries = [r.summary for r in shows.records]
    # A mean over seeds needs the model in every run.
    everywhere = [m for m in summaries[0]["models"] if all(m in s["models"] for s in summaries)]
    models = [model for model in everywhere if model != "student"]
    found = []
    for model in models:
        label = BASE if model == "base" else model
        found.append((label, summaries, dict.fromkeys(pool.tasks, model)))
    own = {task: f"teacher {task}" for task in pool.tasks}
    if set(own.values()) <= set(models):
        found.append((TEACHERS, summaries, own))
    return found


def aggregates(pool: Pool, found: dict[str, Standing], reference: str, prefix: str) -> Table:
    """Aggregates that are robust to outliers among few runs, after rliable (arXiv 2108.13264)."""
    table = Table(
        f"{prefix}aggregates",
        f"Robust aggregates: {pool.title}",
        "The interquartile mean is over the gains recovered of all tasks and seeds without the lowest and highest "
        "quarter (rounded down), so that a task that is an outlier in every run is left out too. Its 95% interval is a "
        "bootstrap of whole runs and too narrow with few seeds. The probability of improvement is the probability that "
        f"a run has a higher mean score than a run of {reference}, with Newcombe's 95% interval. Seeds with "
        "bit-identical results count once in both.",
        [
            Column("line", "method"),
            Column("seeds", "seeds", "count"),
            Column("iqm", "interquartile mean of gain recovered", "share"),
            Column("chance", f"probability of improvement over {reference}", "share"),
        ],
    )
    for line in pool.lines:
        standing = found[line.label]
        row: Row = {"line": line.label, "seeds": standing.seeds, "iqm": standing.gain_iqm}
        # Against itself the reference would have a meaningless 50%.
        if line.label != reference:
            row["chance"] = standing.above_reference
        table.rows.append(row)
    return table


def levels(scores: Table, keys: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Column of the score table -> the values of the base and of the task's own teacher, where it has them."""
    labels = {label: name for name, label in REFERENCES.items()}
    rows = {labels[row["line"]]: row for row in scores.rows if row["line"] in labels}
    if not rows:
        return {}
    found: dict[str, dict[str, float]] = {}
    for key in keys:
        found[key] = {name: cell(row, key, Estimate).value for name, row in rows.items()}
    return found


def curves(pool: Pool, prefix: str) -> Table:
    """Scores along training: by fraction of the budget, NFE and seconds."""
    table = Table(
        f"{prefix}curves",
        f"Anytime curves: {pool.title}",
        "Score at every recorded point that all seeds of a line have. NFE are those spent by the update that completes "
        "the fraction of the budget; seconds are a run's training and scoring seconds times the fraction of its NFE "
        "that is spent. Intervals are 95%, as in the score table.",
        [
            Column("line", "method"),
            Column("task", "task"),
            Column("share", "fraction of budget", "share"),
            Column("nfe", "training", "count", "NFE"),
            Column("seconds", "training and scoring", "count", "s"),
            Column("score", "score", "score"),
        ],
    )
    for line in pool.lines:
        runs_ = [r.evaluations for r in line.records]
        spent = seconds(line.records)
        for task in pool.tasks:
            points, pictures = by_share(runs_, task)
            shares = sorted(points)
            scored = estimates([points[share] for share in shares], pictures) if shares else []
            for share, value in zip(shares, scored):
                nfe = float(np.mean([nfe_at(record, share) for record in line.records]))
                table.rows.append(
                    {
                        "line": line.label,
                        "task": task,
                        "share": share,
                        "nfe": nfe,
                        "seconds": spent * nfe / line.training_nfe if line.training_nfe else spent,
                        "score": value,
                    }
                )
    return table


def falls(pool: Pool, prefix: str) -> Table:
    """Drop from the best recorded point to the end, and backward transfer in cascades."""
    table = Table(
        f"{prefix}forgetting",
        f"Forgetting: {pool.title}",
        "Drop from best is the best recorded point (of the mean over seeds) minus the final one, paired by seed and "
        "prompt. For cascades, the change since its own stage is the final score minus the score at the end of the "
        "task's own stage; the change in the next stage is the score at the end of the following stage minus the same "
        "(a later stage may recover the loss). Intervals are 95% and p-values are uncorrected. The best point is "
        "chosen by the same scores, so drops are biased upwards; no interval means that the final point is the best. A "
        "dash means not evaluated. Lines without an evaluation before the end are left out.",
        [
            Column("line", "method"),
            Column("task", "task"),
            Column("drop", "drop from best", "change"),
            Column("next_stage", "change in the next stage", "change"),
            Column("p_next", "p", "p"),
            Column("since_stage", "change since its own stage", "change"),
            Column("p_since", "p", "p"),
        ],
    )
    for line in pool.lines:
        rows: list[Row] = []
        for task in pool.tasks:
            found = line.forgetting(task)
            row: Row = {"line": line.label, "task": task, "drop": found.drop_from_best}
            changes = {"next": found.change_in_next_stage, "since": found.change_after_own_stage}
            for name, change in changes.items():
                if change is not None:
                    row[f"{name}_stage"] = change
                    # With one seed p would be over prompts only.
                    row[f"p_{name}"] = change.p if len(line.records) > 1 else None
            rows.append(row)
        drops = [cell(row, "drop", Difference).value for row in rows]
        if not all(map(math.isnan, drops)):
            table.rows += rows
    return table


def course(pool: Pool, prefix: str) -> Table:
    """Scores of every line by recorded point and task."""
    table = Table(
        f"{prefix}matrix",
        f"Scores by checkpoint and task: {pool.title}",
        "Mean over seeds at every recorded point. A dash means that a task was not evaluated there.",
        [
            Column("line", "method"),
            Column("share", "fraction of budget", "share"),
            *(Column(task, task, "score") for task in pool.tasks),
        ],
    )
    for line in pool.lines:
        runs_ = [record.evaluations for record in line.records]
        found = {task: by_share(runs_, task) for task in pool.tasks}
        # Tasks may be evaluated at different points.
        shares = {share for points, _ in found.values() for share in points}
        for share in sorted(shares):
            row: Row = {"line": line.label, "share": share}
            for task, (points, pictures) in found.items():
                row[task] = stratified_mean(points[share].mean(0), pictures) if share in points else None
            table.rows.append(row)
    return table


def cosines(records: list[Record]) -> dict[str, dict[float, Estimate]]:
    """Cosines over all weights by pair of tasks and fraction of the budget; empty if no run recorded them."""
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        for row in record.probes:
            for pair, by_group in row["interference"].items():
                points = found.setdefault(pair, {})
                points.setdefault(row["share"], []).append(by_group["all"])
    estimated: dict[str, dict[float, Estimate]] = {}
    for pair, points in found.items():
        estimated[pair] = {}
        for share, values in sorted(points.items()):
            # One column instead of prompts: the interval is over seeds only.
            column = np.array(values)[:, None]
            estimated[pair][share] = estimate(column, np.zeros(1))
    return estimated


def interference(pool: Pool, prefix: str) -> Table | None:
    """Cosines between the tasks' gradients during training; None if no run recorded them."""
    table = Table(
        f"{prefix}interference",
        f"Interference: {pool.title}",
        "Cosine similarity between two tasks' gradients, from independent halves of the estimates; that of a task with "
        "itself is the ceiling. The 95% intervals are Student's t over seeds.",
        [
            Column("line", "method"),
            Column("pair", "tasks"),
            Column("share", "fraction of budget", "share"),
            Column("cosine", "cosine", "change"),
        ],
    )
    for line in pool.lines:
        for pair, points in cosines(line.records).items():
            for share, value in points.items():
                table.rows.append({"line": line.label, "pair": pair, "share": share, "cosine": value})
    return table if table.rows else None


def goodhart(pool: Pool, prefix: str) -> Table | None:
    """Reward against known utility, for tasks that report one; None if there is none."""
    table = Table(
        f"{prefix}over-optimisation",
        f"Over-optimisation: {pool.title}",
        "How far the known utility dropped from its best point to the end, and how the reward changed over the same "
        "time: a drop with a rising reward is over-optimisation. Intervals are 95%. The best point is chosen by the "
        "same scores, so drops are biased upwards; no interval means that the final point is the best.",
        [
            Column("line", "method"),
            Column("task", "task"),
            Column("share", "fraction of budget", "share"),
            Column("proxy", "reward", "score"),
            Column("gold", "known utility", "score"),
            Column("gold_drop", "utility drop", "change"),
            Column("meanwhile", "reward change", "change"),
        ],
    )
    for line in pool.lines:
        for task in pool.tasks:
            found = over_optimisation([r.evaluations for r in line.records], task)
            if found is None:
                continue
            for share, proxy, gold in zip(found.shares, found.proxy, found.gold):
                row: Row = {"line": line.label, "task": task, "share": share}
                row |= {"proxy": proxy, "gold": gold}
                # The drop belongs to the whole course, so it is given once, at its end.
                if share == found.shares[-1]:
                    row |= {"gold_drop": found.gold_drop, "meanwhile": found.proxy_meanwhile}
                table.rows.append(row)
    return table if table.rows else None


def runs(pool: Pool, prefix: str) -> Table:
    """The source of every number: run, seed, spec hash, commit, machine, command."""
    table = Table(
        f"{prefix}runs",
        f"Runs: {pool.title}",
        "A run's folder has its package versions and other settings. The command repeats the run.",
        [
            Column("line", "method"),
            Column("seed", "seed", "count"),
            Column("run", "run folder"),
            Column("state", "state"),
            Column("spec", "spec hash"),
            Column("commit", "commit"),
            Column("device", "machine"),
            Column("command", "command"),
            Column("note", "note"),
        ],
    )
    for line in pool.lines:
        for run in pool.folders[line.label]:
            table.rows.append(_run_row(line.label, run))
    for run in pool.repeated:
        note = "repeats the line and seed of a run above; not counted"
        table.rows.append(_run_row(run.spec["method"], run) | {"note": note})
    for run in pool.odd:
        note = f"spent {run.spent:,.0f} NFE, unlike most runs of its line; not counted"
        table.rows.append(_run_row(run.spec["method"], run) | {"note": note})
    for run in pool.unfinished:
        table.rows.append(_run_row(run.spec["method"], run))
    return table


def _run_row(label: str, run: FoundRun) -> Row:
    preset, seed = str(run.folder / "spec.json"), str(run.spec["seed"])
    again = ["bench", "run", "--preset", preset, "--seeds", seed]
    return {
        "line": label,
        "seed": run.spec["seed"],
        "run": run.name,
        "state": run.state,
        "commit": run.commit,
        # A folder is named METHOD-HASH-sSEED, and a method's name may contain hyphens.
        "spec": run.name.rpartition("-s")[0].rpartition("-")[2],
        "device": run.device,
        "command": shlex.join(again),
        "note": run.note,
    }
