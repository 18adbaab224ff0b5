"""The sections of the report, in their order."""

from dataclasses import replace

from markupsafe import Markup

from bench.analysis.fronts import TEACHERS, fronts
from report.alarms import alarms_table
from report.answer import answer, warnings
from report.claims import gradient_claims, score_claims
from report.evidence import Evidence
from report.figures import course_figure, curves_figure, gold_figure, heat_figure, scores_figure
from report.first import Beside, first_screen, key_results
from report.fronts import front_parts, titled_front
from report.gradients import excess_parts, noise_parts, pulls_table
from report.highlights import highlight, looks_of
from report.hypotheses_file import Stated
from report.lines import Pool, apart, of_teachers, pools, titled
from report.measures import drift_figure, drift_table, measures_tables
from report.other_scores import other_scores_table
from report.page import Report, Section
from report.stated import stated_section
from report.studies import study_parts
from report.style import MOST, looks
from report.table import Column, Table, slugs
from report.tables import PoolTables, levels, pool_tables, references
from report.tags import below_table, tags_table
from report.transfer import profiles_figure, profiles_table, transfer_table


def make(evidence: Evidence, stated: Stated | None = None) -> Report:
    """Build the whole report from the evidence; it begins with what it says about hypotheses stated in advance."""
    report = Report()
    found = list(map(titled, pools(evidence)))
    lone = {pool.title for pool in found if of_teachers(pool, found)}
    found.sort(key=lambda pool: pool.title in lone)
    every = []
    for index, pool in enumerate(found):
        every.append((pool, pool_tables(pool, _prefix(index))))
    highlight(every)
    made = [(pool, tables) for pool, tables in every if pool.title not in lone]
    # Before the first section, which sums up what they find; pictures add unreadable files to the caveats there.
    pictures = _pictures(report, every, evidence)
    claims, claimed = _claims(report, made, evidence)
    transfers, alarms, below = {}, {}, {}
    for index, (pool, tables) in enumerate(every):
        # Lines in a pool that counts the teachers are in another pool too.
        if pool.lines and not pool.whole:
            transfers[pool.title] = transfer_table(pool, _prefix(index)) if tables.forgetting.rows else None
            alarms[pool.title] = alarms_table(pool, _prefix(index))
            below[pool.title] = below_table(pool, _prefix(index))
    beside = Beside(transfers, alarms, below, claimed)
    report.sections = [
        *([stated_section(report, stated, found)] if stated else []),
        _answers(report, every, evidence, beside, lone),
        _scores(report, made, beside),
        _fronts(report, made),
        _curves(report, made),
        _gradients(report, evidence),
        _forgetting(report, made, beside),
        _interference(report, made, evidence),
        _gold(report, every, beside),
        _measures(report, made),
        _ablations(report, made),
        _sweeps(report, evidence),
        pictures,
        claims,
        _provenance(report, every),
    ]
    report.sections = [section for section in report.sections if section.parts]
    return report


def _prefix(index: int) -> str:
    return "" if index == 0 else f"{index + 1}-"


Made = list[tuple[Pool, PoolTables]]


def _answers(report: Report, made: Made, evidence: Evidence, beside: Beside, lone: set[str]) -> Section:
    section = Section("Key results")
    if not any(pool.lines for pool, _ in made) and (evidence.runs or not evidence):
        section.say(
            "No finished run was found. Runs in progress, failed runs and unreadable files are listed below.", "answer"
        )
    key = key_results([(pool, tables) for pool, tables in made if pool.lines])
    words = Section("In words, with intervals and p-values")
    for index, place in enumerate(dict.fromkeys(pool.place for pool, _ in made if pool.lines)):
        own, screen = [(pool, tables) for pool, tables in made if pool.place == place], Section("")
        if compared := [(pool, tables) for pool, tables in own if pool.lines and pool.title not in lone]:
            first_screen(report, screen, compared, key, beside, _prefix(index))
            section.under(f"On {place}", screen)
        words.head(f"On {place}")
        for pool, tables in own:
            if pool.lines:
                words.points(*answer(pool, tables))
    if words.parts:
        section.fold(words)
    report.show(section, key, folded=True)
    texts = warnings([pool for pool, _ in made], evidence)
    if texts:
        caveats = Section("Caveats")
        caveats.points(Markup(""), texts, "warn")
        section.fold(caveats, len(texts))
    return section


def _scores(report: Report, made: Made, beside: Beside) -> Section:
    section = Section("Scores and cost")
    if any(len(pool.lines) > MOST for pool, _ in made):
        section.say(
            f"Figures show {MOST} lines: the reference and the best by mean score. The tables list all lines.", "note"
        )
    for index, (pool, tables) in enumerate(made):
        if not pool.lines:
            continue
        frame = tables.scores.frame()
        look = looks_of(pool, tables, pool.lines)
        heads = {c.key: c.head for c in tables.scores.columns}
        known = levels(tables.scores, (*pool.tasks, "mean"))
        figure = scores_figure(frame, list(pool.tasks), heads, look, known, tables.scores.name)
        report.show(section, tables.scores, figure)
        if not pool.whole:
            report.show(section, tags_table(pool, _prefix(index)), folded=True)
            report.show(section, beside.below.get(pool.title), folded=True)
        report.show(section, other_scores_table(pool, references(pool), _prefix(index)), folded=True)
        report.show(section, tables.aggregates, folded=True)
        report.show(section, tables.cost)
        report.show(section, tables.until_target, folded=True)
    return section


def _fronts(report: Report, made: Made) -> Section:
    section = Section("Fronts")
    for index, (pool, tables) in enumerate(made):
        if pool.whole:
            continue
        by_label = {line.typed: line for line in pool.lines}
        found = fronts({label: line.records for label, line in by_label.items()}, pool.tasks)
        if found:
            # A front's label begins with its method, and the teachers have marks of their own.
            methods = [front.label.split()[0] for front in found if front.label != TEACHERS]
            found = [titled_front(front, by_label) for front in found]
            look = looks(list(zip([front.label for front in found], methods)))
            beside = levels(tables.scores, pool.tasks)
            name = f"{_prefix(index)}fronts"
            hypervolumes, figure, points = front_parts(found, pool.tasks, pool.title, beside, look, name)
            report.show(section, hypervolumes, figure)
            report.show(section, points, folded=True)
    return section


def _curves(report: Report, made: Made) -> Section:
    section = Section("Anytime curves")
    for pool, tables in made:
        if tables.curves.rows:
            frame = tables.curves.frame()
            # A line that was evaluated only at its end has no curve; one without training is drawn as a single point.
            points = frame.groupby("line")["share"].nunique()
            drawn = [line for line in pool.lines if points.get(line.label, 0) > 1 or not line.training_nfe]
            if any(line.training_nfe for line in drawn):
                look = looks_of(pool, tables, drawn)
                # With a grid, final scores have other guidance scales than points along training.
                gridded = any("along" in record.summary for line in drawn for record in line.records)
                beside = {} if gridded else levels(tables.scores, pool.tasks)
                figure = curves_figure(frame, list(pool.tasks), look, beside, tables.curves.name)
                report.show(section, figure)
            report.show(section, tables.curves, folded=True)
    for index, (pool, tables) in enumerate(made):
        found = profiles_table(pool, _prefix(index)) if pool.lines else None
        if found:
            look = looks_of(pool, tables, pool.lines)
            report.show(section, profiles_figure(found.frame(), look, found.name))
            report.show(section, found, folded=True)
    return section


def _gradients(report: Report, evidence: Evidence) -> Section:
    section = Section("Gradient noise")
    for index, (path, probes) in enumerate(evidence.probes):
        report.show(section, *noise_parts(path.stem, probes, f"gradient-{index + 1}"))
    for index, (path, rows) in enumerate(evidence.excess):
        report.show(section, *excess_parts(path.stem, rows, f"excess-{index + 1}"))
    return section


def _forgetting(report: Report, made: Made, beside: Beside) -> Section:
    section = Section("Forgetting")
    for pool, tables in made:
        if tables.forgetting.rows:
            frame = tables.forgetting.frame()
            # Lines that were evaluated only at the end have no row in the table.
            look = looks_of(pool, tables, pool.lines)
            lines = [label for label in look if (frame["line"] == label).any()]
            figure = heat_figure(frame, list(pool.tasks), lines, tables.forgetting.name)
            report.show(section, figure)
            report.show(section, beside.transfer.get(pool.title))
            report.show(section, tables.forgetting, folded=True)
            report.show(section, tables.course, folded=True)
    return section


def _interference(report: Report, made: Made, evidence: Evidence) -> Section:
    section = Section("Interference")
    for pool, tables in made:
        if tables.interference:
            frame = tables.interference.frame()
            title = "Cosine similarity between the tasks' gradients during training."
            name = tables.interference.name
            look = looks_of(pool, tables, pool.lines)
            report.show(section, course_figure(frame, "pair", "cosine", look, name, title, "cosine"))
            report.show(section, tables.interference, folded=True)
    for index, (path, probes) in enumerate(evidence.probes):
        report.show(section, pulls_table(path.stem, probes, f"interference-{index + 1}"), folded=True)
    return section


def _gold(report: Report, made: Made, beside: Beside) -> Section:
    section = Section("Over-optimisation")
    for pool, tables in made:
        report.show(section, beside.alarms.get(pool.title) if not pool.whole else None)
        if tables.over_optimisation:
            frame = tables.over_optimisation.frame()
            look = looks_of(pool, tables, pool.lines)
            report.show(section, gold_figure(frame, look, tables.over_optimisation.name))
            report.show(section, tables.over_optimisation, folded=True)
    return section


def _measures(report: Report, made: Made) -> Section:
    section = Section("Diversity and drift")
    for index, (pool, tables) in enumerate(made):
        if pool.whole or not pool.lines:
            continue
        drift = drift_table(pool, _prefix(index))
        if drift:
            look = looks_of(pool, tables, pool.lines)
            beside = levels(tables.scores, pool.tasks)
            report.show(section, drift_figure(drift.frame(), list(pool.tasks), look, beside, drift.name))
        measured = [line for line in pool.lines if tables.standings[line.label].measures]
        shown = references(replace(pool, lines=measured))
        for place, found in enumerate(measures_tables(pool, tables.standings, shown, _prefix(index))):
            report.show(section, found, folded=place > 0)
        if drift:
            report.show(section, drift, folded=True)
    return section


def _ablations(report: Report, made: Made) -> Section:
    section = Section("Ablations")
    for index, (pool, tables) in enumerate(made):
        reference = pool.reference()
        if not reference or pool.whole:
            continue
        same = [line for line in pool.lines if line.method == reference.method]
        peers = [line for line in same if line is not reference]
        if not peers:
            continue
        against = f"minus {reference.label}"
        table = Table(
            f"{_prefix(index)}ablations",
            f"{reference.method} with other settings: {pool.title}",
            f"Mean score minus that of {reference.label}, paired by seed and prompt, with Holm's correction over the "
            "exploratory family of the score table.",
            [Column("line", "line"), Column("against", against, "change"), Column("p", "p (Holm)", "p")],
        )
        for line in peers:
            gap = tables.standings[line.label].against_reference
            table.rows.append({"line": line.label, "against": gap, "p": gap.p})
        report.show(section, table)
    return section


def _sweeps(report: Report, evidence: Evidence) -> Section:
    section = Section("Sweeps")
    names = slugs(study["study"] for _, study in evidence.studies)
    for name, (_, study) in zip(names, evidence.studies):
        report.show(section, *study_parts(study, f"study-{name}"))
        command = study.get("command")
        if command:
            trial = "chosen" if study.get("confirmed") else "best"
            section.say(Markup("To repeat the {} trial: <code>{}</code>").format(trial, command), "note")
    return section


def _pictures(report: Report, made: Made, evidence: Evidence) -> Section:
    section = Section("Images")
    pictured = []
    for index, (pool, _) in enumerate(made):
        if any(pool.pictured.values()):
            pictured.append((index, pool))
    if pictured:
        # Imported here because it reads images with torch, which the rest does without.
        from report.pictures import grids

        for i, pool in pictured:
            for table, grid in grids(pool, _prefix(i), evidence.problems):
                report.show(section, grid)
                report.show(section, table, folded=True)
    if any(pool.lines for pool, _ in made) and not section.parts:
        how = "pass --set evaluation.pictures=true to bench run or bench compare"
        section.say(f"No run kept its images. To keep them, {how}.", "note")
    return section


def _claims(report: Report, made: Made, evidence: Evidence) -> tuple[Section, Table]:
    section = Section("Claims of the paper")
    table = Table(
        "claims",
        "Claims of DiffusionOPD (arXiv 2605.15055) in these records",
        "A claim holds if the whole 95% interval is on the claimed side, does not hold if it is on the other side, and "
        "is undecided otherwise. Where a family is named, Holm's correction within it must agree. The primary family "
        "has the paper's comparisons (joint RL, cascade and PPO-style OPD, each with its recipe); the exploratory "
        "family has the other settings and methods that the paper reports to be below OPD. Comparisons with and "
        "without the teachers' cost are separate families; hypotheses stated in advance have families of their own, so "
        "that the same difference may have another p-value there. Claims without a family are tested individually. "
        "Intervals of effects are 95% and not corrected.",
        [
            Column("where", "where"),
            Column("claim", "claim"),
            Column("quantity", "tested quantity"),
            Column("effect", "effect", "change"),
            Column("verdict", "verdict"),
            Column("family", "family"),
        ],
    )
    # Claims with the teachers' cost compare lines of different budgets, so all pools of one place are judged together.
    places: dict[str, list[Pool]] = {}
    for pool, _ in made:
        places.setdefault(pool.place, []).append(pool)
    found = []
    for place, members in places.items():
        if not any(pool.lines for pool in members):
            continue
        lines = [line for line, _ in apart(members)]
        found.append((place, score_claims(lines, members[0].tasks)))
    found += [(path.stem, gradient_claims(probes)) for path, probes in evidence.probes]
    for where, verdicts in found:
        for v in verdicts:
            table.rows.append(
                {
                    "where": where,
                    "claim": v.claim,
                    "quantity": v.quantity,
                    "effect": v.effect,
                    "verdict": v.verdict,
                    "family": v.family or None,
                }
            )
    report.show(section, table)
    return section, table


def _provenance(report: Report, made: Made) -> Section:
    section = Section("Provenance")
    for _, tables in made:
        report.show(section, tables.overview)
        report.show(section, tables.names, folded=True)
        report.show(section, tables.runs, folded=True)
    return section
