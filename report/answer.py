"""The first section of the report: which line wins, on which task, by how much, and the caveats."""

import math

from markupsafe import Markup

from bench.analysis.comparison import EXPLORATORY, PRIMARY_FAMILY
from bench.analysis.records import prompts_known, score
from bench.analysis.stats import Estimate
from bench.config.settings import ranges
from bench.registry import find
from report.claims import ALPHA
from report.evidence import Evidence
from report.lines import Conditions, Pool
from report.table import cell, number, unmarked
from report.tables import BASE, PoolTables

NOTICED = 5e-4
"""Smallest difference of two scores that is visible in the tables."""
NAMED = 5
"""Largest number of lines that one sentence names."""


def answer(pool: Pool, tables: PoolTables) -> tuple[Markup, list[Markup]]:
    """The main sentence about one pool and its supporting points; every number comes from the pool's tables."""
    # The base and the teachers come after the lines and do not compete with them.
    rows = tables.scores.rows[: len(pool.lines)]
    ranked = sorted(rows, key=lambda row: -cell(row, "mean", Estimate).value)
    best = ranked[0]
    counts = tables.overview.rows[0]
    seeds = number(counts["fewest_seeds"], "count")
    if counts["most_seeds"] != counts["fewest_seeds"]:
        seeds = Markup("{} to {}").format(seeds, number(counts["most_seeds"], "count"))
    spent = "NFE per run, including the teachers' training" if pool.whole else "training NFE per run"
    many = "seed" if counts["most_seeds"] == 1 else "seeds"
    text = Markup("At about {} {}, {} {}: ").format(number(counts["budget"], "count"), spent, seeds, many)
    if len(ranked) == 1:
        alone = Markup("{} has a mean score of {}; there is no other line to compare it with.")
        return text + alone.format(best["line"], number(best["mean"], "score")), []
    # Lines that tie exactly are all named; sorting alone would favour the first one.
    highest = cell(best, "mean", Estimate).value
    equal = [row["line"] for row in ranked if cell(row, "mean", Estimate).value == highest]
    names = Markup(", ").join(Markup("<strong>{}</strong>").format(name) for name in equal)
    verb = "has" if len(equal) == 1 else "share"
    mean = number(best["mean"], "score")
    text += Markup("{} {} the highest mean score, {}. ").format(names, verb, mean)
    text += Markup("Compared with {}, paired by seed and prompt, Holm-corrected over {} (intervals are not):").format(
        tables.reference, _families(counts)
    )
    return text, [*_against(ranked, tables), *_by_task(ranked, pool, tables)]


def _families(counts: dict) -> Markup:
    """How many comparisons each family has that Holm's correction treats as one."""
    primary = _comparisons(counts, PRIMARY_FAMILY)
    exploratory = _comparisons(counts, EXPLORATORY)
    if not counts[PRIMARY_FAMILY]:
        return exploratory
    paper = "the paper's: joint RL, cascade and PPO-style OPD, each with its recipe"
    said = "{} of the primary family ({}) and, separately, {} of the exploratory family"
    return Markup(said).format(primary, paper, exploratory)


def _comparisons(counts: dict, family: str) -> Markup:
    noun = "comparison" if counts[family] == 1 else "comparisons"
    return Markup("{} {}").format(number(counts[family], "count"), noun)


def _against(ranked: list[dict], tables: PoolTables) -> list[Markup]:
    """Which lines differ significantly from the reference, which are equivalent to it, and which are undecided."""
    found = verdicts(ranked, tables.reference)
    parts = []
    for name in ("above", "below"):
        shown = [_told(row) for row in found[name]]
        if shown:
            parts.append(Markup("{}: {}.").format(name.capitalize(), Markup("; ").join(shown)))
    others = [row for row in ranked if row["line"] != tables.reference]
    # A line can be significantly different and yet equivalent: the difference is real, but within the margin.
    equal = [row for row in others if row["p_equivalent"] < ALPHA]
    if equal:
        margin = number(tables.overview.rows[0]["margin"], "score")
        said = "Equivalent within plus or minus {}, a tenth of the teachers' mean gain (two one-sided tests): {}."
        parts.append(Markup(said).format(margin, _names(equal)))
    open_ = "No significant difference"
    if any(not math.isnan(row["p_equivalent"]) for row in others):
        open_ = "Neither significantly different nor shown to be equivalent"
    for said, group in (
        (open_, found["undecided"]),
        ("Identical scores on every prompt", found["same"]),
        ("Not tested (fewer than two shared seeds)", found["untested"]),
    ):
        if group:
            parts.append(Markup("{}: {}.").format(said, _names(group)))
    return parts


def verdicts(rows: list[dict], reference: str) -> dict[str, list[dict]]:
    """Rows of the score table by their verdict against the reference, each in one list, in their order."""
    found: dict[str, list[dict]] = {
        kind: [] for kind in ("above", "below", "equal", "undecided", "same", "untested")
    }
    for row in rows:
        if row["line"] == reference:
            continue
        gap, p = row["against"], row["p"]
        # Identical scores have no variance and a p-value of NaN, so they are asked about before the untested lines.
        if gap.low == gap.high == 0:
            kind = "same"
        elif math.isnan(p):
            kind = "untested"
        elif p < ALPHA and gap.value:
            kind = "above" if gap.value > 0 else "below"
        else:
            kind = "equal" if row["p_equivalent"] < ALPHA else "undecided"
        found[kind].append(row)
    return found


def _names(rows: list[dict]) -> str:
    return _some([row["line"] for row in rows])


def _told(row: dict) -> Markup:
    """A line that differs significantly, its gap and p-value, and whether it is a primary comparison."""
    gap = number(row["against"], "change")
    p = number(row["p"], "p")
    # A tiny p-value is printed as a bound and has its own sign.
    equals = "" if unmarked(p).startswith("&lt;") else "= "
    primary = ", primary" if row["family"] == PRIMARY_FAMILY else ""
    return Markup("{} {} (p {}{}{})").format(row["line"], gap, equals, p, primary)


def _by_task(ranked: list[dict], pool: Pool, tables: PoolTables) -> list[Markup]:
    """The highest line of every task, and whether it is significantly above all others."""
    found: dict[bool, list[Markup]] = {True: [], False: []}
    # A line could have the base's label, so only the rows after the lines are searched.
    references = tables.scores.rows[len(pool.lines) :]
    base = next((row for row in references if row["line"] == BASE), None)
    for task in pool.tasks:
        top = max(ranked, key=lambda row: row[task].value)
        highest = [row for row in ranked if row[task].value == top[task].value]
        # The table's bold cells are the lines that are significantly above all others; nothing is tested again here.
        clear = next(i for i, row in enumerate(tables.scores.rows) if row is top), task
        score_of_top = number(top[task], "score")
        said = Markup("{}: {} {}").format(task, _names(highest), score_of_top)
        if base and cell(base, task, Estimate).value >= top[task].value:
            said += Markup(", not above the base ({})").format(number(base[task], "score"))
        found[clear in tables.scores.strong].append(said)
    leads = {
        True: "Highest by task, significantly above every other line: {}.",
        False: "Highest by task, but not significantly above every other line: {}.",
    }
    points = []
    for significant, parts in found.items():
        if parts:
            listed = Markup("; ").join(parts)
            points.append(Markup(leads[significant]).format(listed))
    return points


def warnings(found: list[Pool], evidence: Evidence) -> list[Markup]:
    """The caveats: missing seeds, other budgets, failed or unfinished runs, few seeds, damaged files."""
    texts: list[Markup] = []
    first: dict[Conditions, Pool] = {}
    for pool in found:
        where: Markup | str = ""
        if len(found) > 1:
            where = Markup("At about {} NFE: ").format(number(pool.budget, "count"))
        # These lines are in other pools too, which give their remaining caveats.
        if pool.whole:
            texts += _missing(pool, where)
            continue
        main = first.setdefault(pool.world, pool)
        if main is not pool:
            names = _some([line.label for line in pool.lines])
            spent = number(pool.budget, "count")
            usual = number(main.budget, "count")
            said = "Compared separately, because it spent about {} training NFE per run instead of {}: {}."
            texts.append(Markup(said).format(spent, usual, names))
        texts += _missing(pool, where)
        idle = [line.label for line in pool.lines if not line.training_nfe and pool.budget]
        if idle:
            said = "{}: listed for reference; it spends no training budget."
            texts.append(Markup(said).format(_some(idle)))
        for run in pool.odd:
            said = "{} spent {:,.0f} training NFE, unlike most runs of its line, and is excluded from every mean."
            texts.append(Markup(said).format(run.name, run.spent))
        for line, (least, most) in pool.spread().items():
            said = "{}{}: its runs spent {:,.0f} to {:,.0f} training NFE; the budget shown is their mean."
            texts.append(Markup(said).format(where, line, least, most))
        scale = "{}The {} has different scores on {} in some runs; gain recovered uses the scale of one line."
        for model, task in _unequal(pool):
            texts.append(Markup(scale).format(where, model, task))
        if pool.repeated:
            said = "{}Excluded from every mean, because another folder has the same line and seed: {}."
            names = ", ".join(run.name for run in pool.repeated)
            texts.append(Markup(said).format(where, names))
        for compared in pool.lines:
            remarks = [remark for record in compared.records for remark in record.summary.get("remarks", [])]
            if remarks:
                texts.append(Markup("{}: {}.").format(compared.label, remarks[0]))
        single = [line.label for line in pool.lines if len(line.records) == 1]
        if single:
            texts.append(Markup("One seed says little about a method: {}.").format(_some(single)))
    texts += _prompts(evidence)
    texts += [Markup("{}; it has no scores.").format(said) for said in evidence.unfinished()]
    commits = sorted({run.commit for run in evidence.runs if run.record and run.commit})
    if len(commits) > 1:
        texts.append(Markup("The runs come from several commits: {}.").format(", ".join(commits)))
    # Problems quote names and errors from files, so they are escaped. A folder given twice lists its problems twice.
    texts += [Markup("{}").format(problem) for problem in dict.fromkeys(evidence.problems)]
    return texts


def _prompts(evidence: Evidence) -> list[Markup]:
    """Notes on records that do not say themselves which images share a prompt."""
    found: dict[str, set[str]] = {"task": set(), "": set()}
    for run in (run for run in evidence.runs if run.record):
        for task, row in run.result.summary["models"]["student"].items():
            source = prompts_known(row)
            found.setdefault(source, set()).add(task)
    texts = []
    listed = sorted(found["task"])
    if listed:
        names = ", ".join(f"{task} {find('task', task).version}" for task in listed)
        said = "Some records do not say which images share a prompt; the registered tasks' prompt lists do ({})."
        texts.append(Markup(said).format(names))
    unknown = sorted(found[""])
    if unknown:
        said = (
            "Some records of {} do not say which images share a prompt. Each image counts as a separate prompt there, "
            "so intervals are too narrow where a prompt has several images."
        )
        texts.append(Markup(said).format(_some(unknown)))
    return texts


def _missing(pool: Pool, where: Markup | str) -> list[Markup]:
    """Which lines lack seeds that others have."""
    absent, texts = pool.missing_seeds, []
    for seeds in dict.fromkeys(map(tuple, absent.values())):
        labels = [label for label, own in absent.items() if tuple(own) == seeds]
        without, numbers = _some(labels), ranges(seeds)
        said = "{}No finished run for seeds {}: {}. Differences use only the seeds that both lines have."
        texts.append(Markup(said).format(where, numbers, without))
    return texts


def _unequal(pool: Pool) -> list[tuple[str, str]]:
    """(model, task) whose scores differ between runs: of the base, and of a seed's teacher between lines."""
    found: list[tuple[str, str]] = []
    shown = [r.summary for line in pool.lines for r in line.records]
    for task in pool.tasks:
        for model in ("base", f"teacher {task}"):
            by_seed: dict[int, list[float]] = {}
            for summary in (s for s in shown if model in s["models"]):
                # Teachers may be trained seed by seed, so they may differ between seeds; the base may not.
                key = 0 if model == "base" else summary["seed"]
                value = score(summary["models"][model][task])
                by_seed.setdefault(key, []).append(value)
            if any(max(scores) - min(scores) > NOTICED for scores in by_seed.values()):
                found.append((model, task))
    return found


def _some(labels: list[str]) -> str:
    """The names, or the first of them and how many more there are."""
    named = ", ".join(labels[:NAMED])
    more = len(labels) - NAMED
    return f"{named} and {more} more" if more > 0 else named
