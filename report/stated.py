"""The report's first section where hypotheses were stated in advance: a sentence each, a picture and a table."""

from markupsafe import Markup

from report.forest import Group, forest_figure
from report.hypotheses import Finding, Stated, examine
from report.lines import Pool
from report.page import Report, Section
from report.style import looks
from report.table import Column, Row, Table, number

SAID = {
    "holds": "holds",
    "fails": "does not hold: the opposite does",
    "undecided": "is undecided",
    "uninformative": "says nothing, because the teachers gained too little",
    "open": "is open",
}


def stated_section(report: Report, stated: Stated, pools: list[Pool]) -> Section:
    """The findings on the hypotheses of one file. Raises as `examine` does."""
    section = Section("Hypotheses stated in advance")
    found = examine(stated, pools)
    section.points(Markup("{}").format(stated.title), [_sentence(finding, stated) for finding in found])
    look = looks([(world, world) for world in stated.worlds])
    groups = []
    for finding in found:
        lines = {world: effect for world, effect in finding.effects.items() if effect.value == effect.value}
        asked = finding.hypothesis
        side = f"{asked.direction} {-asked.sign * asked.margin or 0:g}"
        title = f"{asked.name}: {asked.line} minus {_subtracted(finding)}, claimed {side}"
        if lines:
            groups.append(Group(title, _subtracted(finding), lines, look, 0))
    others = [world for world in stated.worlds if world != stated.decided_in]
    agreeing = f" The differences of {' and '.join(others)} have to be on the same side." if others else ""
    note = f"Differences with 95% intervals, paired by seed and prompt. {stated.decided_in} decides.{agreeing}"
    report.show(section, forest_figure(groups, "hypotheses", note) if groups else None)
    report.show(section, _table(found, stated, agreeing), folded=True)
    return section


def _sentence(finding: Finding, stated: Stated) -> Markup:
    asked = finding.hypothesis
    text = Markup("<strong>{}</strong> {} ({})").format(asked.name, SAID[finding.verdict], asked.claim)
    effects = [
        Markup("{} in {}").format(number(effect, "change"), world)
        for world, effect in finding.effects.items()
        if effect.value == effect.value
    ]
    if effects:
        text += Markup(": ") + Markup(", ").join(effects)
    p = finding.p_opposite if finding.verdict == "fails" else finding.p
    if p == p:
        text += Markup("; p {} in {}").format(number(p, "p"), stated.decided_in)
    if finding.lacking:
        text += Markup(". Not complete: {}").format("; ".join(finding.lacking))
    return text + "."


def _subtracted(finding: Finding) -> str:
    asked = finding.hypothesis
    if asked.minus is None:
        return f"itself at {asked.minus_at:.0%} of its budget"
    return f"{asked.minus}" if not isinstance(asked.minus, str) else "its teacher"


def _table(found: list[Finding], stated: Stated, agreeing: str) -> Table:
    table = Table(
        "hypotheses",
        stated.title,
        f"A hypothesis holds if its p-value in {stated.decided_in}, after Holm's correction within its family, is "
        f"below {stated.level:g} and the difference is on the claimed side.{agreeing} It does not hold if that is so "
        "of the opposite side, and is undecided otherwise. It is open until all named seeds of its family have "
        "finished; until then there is no p-value. Tests are two-sided, and one-sided where a margin is allowed for. A "
        "claim about a teacher says nothing if the teacher's gain over the base may be below its gate.",
        [
            Column("name", "hypothesis"),
            Column("claim", "claim"),
            *(Column(world, world, "change") for world in stated.worlds),
            Column("p", "p (Holm)", "p"),
            Column("verdict", "verdict"),
            Column("family", "family"),
        ],
    )
    for finding in found:
        asked = finding.hypothesis
        row: Row = {"name": asked.name, "claim": asked.claim, "p": finding.p, "verdict": finding.verdict}
        row["family"] = asked.family or None
        table.rows.append(row | {world: effect for world, effect in finding.effects.items()})
    return table
