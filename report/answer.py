"""The report's first words: which line wins on what, by how much, and what must be known to read it."""

from markupsafe import Markup

from report.claims import ALPHA
from report.evidence import Evidence
from report.lines import Pool, World
from report.table import number
from report.tables import BASE, PoolTables

NAMED = 5
"""Lines that a sentence names."""


def answer(pool: Pool, tables: PoolTables) -> tuple[Markup, list[Markup]]:
    """A sentence on one pool and what it rests on; every number is one of its tables'."""
    rows = tables.scores.rows[: len(pool.lines)]  # base and teachers come after the lines
    ranked = sorted(rows, key=lambda row: -row["mean"].value)
    best, counts = ranked[0], tables.overview.rows[0]
    seeds = number(counts["fewest_seeds"], "count")
    if counts["most_seeds"] > counts["fewest_seeds"]:
        seeds = Markup("{} to {}").format(seeds, number(counts["most_seeds"], "count"))
    spent = "evaluations a run, the teachers' training counted" if pool.whole else "training evaluations a run"
    many = "seed" if counts["most_seeds"] == 1 else "seeds"
    text = Markup("At about {} {}, {} {}: ").format(number(counts["budget"], "count"), spent, seeds, many)
    if len(ranked) == 1:
        alone = Markup("{} has the mean score {}; there is nothing to compare it with.")
        return text + alone.format(best["line"], number(best["mean"], "score")), []
    text += Markup("<strong>{}</strong> has the highest mean score, {}. ").format(
        best["line"], number(best["mean"], "score")
    )
    text += Markup("Against {}, paired by seed and prompt, with Holm's correction over {} {}:").format(
        tables.reference, number(counts["rivals"], "count"), "comparison" if counts["rivals"] == 1 else "comparisons"
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
    base = next((row for row in tables.scores.rows[len(pool.lines) :] if row["line"] == BASE), None)
    for task in pool.tasks:
        top = max(ranked, key=lambda row: row[task].value)
        clear = next(i for i, row in enumerate(tables.scores.rows) if row is top), task
        said = Markup("{}: {} {}").format(task, top["line"], number(top[task], "score"))
        if base and base[task].value >= top[task].value:
            said += Markup(", not above the base's {}").format(number(base[task], "score"))
        found[clear in tables.scores.strong].append(said)
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
        if idle := [line.label for line in pool.lines if not line.training_evaluations and pool.budget]:
            texts.append(
                Markup("{}: trains nothing, so it is beside the others, not at their cost.").format(_some(idle))
            )
        for run in pool.odd:
            texts.append(Markup("{} spent {:,.0f} training evaluations, unlike most of its line: in no mean.").format(
                run.name, run.spent
            ))  # fmt: skip
        if differ := [task for task in pool.tasks if len(_bases(pool, task)) > 1]:
            texts.append(Markup("The base's scores differ between runs on {}: shares of gain mix them.").format(
                ", ".join(differ)
            ))  # fmt: skip
        if pool.repeated:
            texts.append(Markup("In no mean, because another folder has the same line and seed: {}.").format(
                ", ".join(run.name for run in pool.repeated)
            ))  # fmt: skip
        single = [line.label for line in pool.lines if len(line.records) == 1]
        if single:
            texts.append(Markup("One seed says little of a method: {}.").format(_some(single)))
    texts += [Markup("{}; it is in no table but that of runs.").format(said) for said in evidence.unfinished()]
    commits = sorted({run.commit for run in evidence.runs if run.record and run.commit})
    if len(commits) > 1:
        texts.append(Markup("The runs were made at several commits: {}.").format(", ".join(commits)))
    texts += [Markup("{}").format(problem) for problem in dict.fromkeys(evidence.problems)]
    return texts


def _bases(pool: Pool, task: str) -> set[bytes]:
    """The different scores of the base that the pool's runs show."""
    shown = [r.summary["models"].get("base") for line in pool.lines for r in line.records]
    return {row[task]["rows"][row[task]["headline"]].tobytes() for row in shown if row}


def _some(labels: list[str]) -> str:
    """Names, or the first of many."""
    return ", ".join(labels) if len(labels) <= NAMED else f"{', '.join(labels[:NAMED])} and {len(labels) - NAMED} more"
