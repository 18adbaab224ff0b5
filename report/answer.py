"""The report's first words: which line wins on what, by how much, and what must be known to read it."""

from markupsafe import Markup

from report.claims import ALPHA
from report.evidence import Evidence
from report.lines import Pool, World
from report.table import number
from report.tables import PoolTables

NAMED = 5
"""Lines that a sentence names."""


def answer(pool: Pool, tables: PoolTables) -> tuple[Markup, list[Markup]]:
    """A sentence on one pool and what it rests on; every number is one of its tables'."""
    rows = [row for row in tables.scores.rows if row["line"] in tables.standings]
    ranked = sorted(rows, key=lambda row: -row["mean"].value)
    best, counts = ranked[0], tables.overview.rows[0]
    seeds = number(counts["fewest_seeds"], "count")
    if counts["most_seeds"] > counts["fewest_seeds"]:
        seeds = Markup("{} to {}").format(seeds, number(counts["most_seeds"], "count"))
    spent = "evaluations a run, the teachers' training counted" if pool.whole else "training evaluations a run"
    text = Markup("At about {} {}, {} seeds: ").format(number(counts["budget"], "count"), spent, seeds)
    if len(ranked) == 1:
        alone = Markup("{} has the mean score {}; there is nothing to compare it with.")
        return text + alone.format(best["line"], number(best["mean"], "score")), []
    text += Markup("<strong>{}</strong> has the highest mean score, {}. ").format(
        best["line"], number(best["mean"], "score")
    )
    text += Markup("Against {}, paired by seed and prompt, with Holm's correction over {} comparisons:").format(
        tables.reference, number(counts["rivals"], "count")
    )
    return text, [*_against(ranked, tables), *_by_task(ranked, pool, tables)]


def _against(ranked: list[dict], tables: PoolTables) -> list[Markup]:
    """What is distinguished from the reference line, and what is not."""
    others = [row for row in ranked if row["line"] != tables.reference]
    told = [row for row in others if row["p"] < ALPHA]
    parts = []
    for name, group in (
        ("Above", [row for row in told if row["against"].value > 0]),
        ("Below", [row for row in told if row["against"].value < 0]),
    ):
        shown = [Markup("{} {}").format(row["line"], number(row["against"], "change")) for row in group]
        if shown:
            parts.append(Markup("{}: {}.").format(name, Markup("; ").join(shown)))
    if undecided := [row["line"] for row in others if row not in told]:
        parts.append(Markup("Not distinguished from it: {}.").format(_some(undecided)))
    return parts


def _by_task(ranked: list[dict], pool: Pool, tables: PoolTables) -> list[Markup]:
    """The highest line of every task, and whether it is distinguished from all others."""
    found: dict[bool, list[Markup]] = {True: [], False: []}
    for task in pool.tasks:
        top = max(ranked, key=lambda row: row[task].value)
        clear = (tables.scores.rows.index(top), task) in tables.scores.strong
        found[clear].append(Markup("{}: {} {}").format(task, top["line"], number(top[task], "score")))
    said = {True: "Highest by task, and distinguished from every other line: {}.",
            False: "Highest by task, but not distinguished from every other line: {}."}  # fmt: skip
    return [Markup(said[clear]).format(Markup("; ").join(parts)) for clear, parts in found.items() if parts]


def warnings(found: list[Pool], evidence: Evidence) -> list[Markup]:
    """What a reader must know: missing seeds, other budgets, failed and unfinished runs, few seeds, damaged files."""
    texts: list[Markup] = []
    first: dict[World, Pool] = {}
    for pool in found:
        if pool.whole:
            continue
        if (main := first.setdefault(pool.world, pool)) is not pool:
            texts.append(Markup("{} spent about {} training evaluations a run, not {}: compared apart.").format(
                _some([line.label for line in pool.lines]), number(pool.budget, "count"), number(main.budget, "count")
            ))  # fmt: skip
        absent = pool.missing_seeds
        for seeds in dict.fromkeys(map(tuple, absent.values())):
            without = _some([label for label, own in absent.items() if tuple(own) == seeds])
            said = "No finished run of seeds {}: {}. Differences are over the seeds that both lines have."
            texts.append(Markup(said).format(", ".join(map(str, seeds)), without))
        if pool.repeated:
            texts.append(Markup("In no mean, because another folder has the same line and seed: {}.").format(
                ", ".join(run.name for run in pool.repeated)
            ))  # fmt: skip
        for run in pool.unfinished:
            said = f"failed: {run.note}" if run.state == "failed" else "is not finished"
            texts.append(Markup("{} {}; it is in no table but that of runs.").format(run.name, said))
        single = [line.label for line in pool.lines if len(line.records) == 1]
        if single:
            texts.append(Markup("One seed says little of a method: {}.").format(_some(single)))
    commits = sorted({run.commit for run in evidence.runs if run.record and run.commit})
    if len(commits) > 1:
        texts.append(Markup("The runs were made at several commits: {}.").format(", ".join(commits)))
    texts += [Markup("{}").format(problem) for problem in dict.fromkeys(evidence.problems)]
    return texts


def _some(labels: list[str]) -> str:
    """Names, or the first of many."""
    return ", ".join(labels) if len(labels) <= NAMED else f"{', '.join(labels[:NAMED])} and {len(labels) - NAMED} more"
