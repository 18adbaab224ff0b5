"""The report's first section where hypotheses were stated in advance: a sentence each, a picture and a table."""

import math

from markupsafe import Markup

from bench.analysis.stats import Difference
from bench.backbones.micro.worlds import DRAWN
from report.against import Weighed, weigh
from report.forest import Group, forest_figure
from report.hypotheses import Finding, examine
from report.hypotheses_file import Stated
from report.lines import Pool
from report.page import Report, Section
from report.style import looks
from report.table import Column, Row, Table, number

IN_SHORT = {
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "undecided": ("is undecided", "are undecided"),
    "uninformative": ("says nothing", "say nothing"),
    "open": ("is open", "are open"),
}
"""What one hypothesis, and what several do."""
PICTURED = {verdict: one.removeprefix("is ") for verdict, (one, _) in IN_SHORT.items()}
"""Verdicts in brackets."""
SAID = {verdict: one for verdict, (one, _) in IN_SHORT.items()} | {
    "fails": "fails: the opposite holds",
    "uninformative": "says nothing, because the teachers gained too little",
}


def stated_section(report: Report, stated: Stated, pools: list[Pool]) -> Section:
    """The findings on the hypotheses of one file. Raises as `examine` does."""
    section = Section("Hypotheses stated in advance")
    found = examine(stated, pools)
    section.points(_lead(found, stated), [_sentence(finding, stated) for finding in found])
    look = looks([(world, world) for world in stated.worlds])
    groups = []
    for finding in found:
        lines = {world: effect for world, effect in finding.effects.items() if effect.value == effect.value}
        asked = finding.hypothesis
        bound = -asked.sign * asked.margin
        claimed = (bound, math.inf) if asked.sign > 0 else (-math.inf, bound)
        if lines:
            title = f"{asked.name} ({PICTURED[finding.verdict]}): {asked.claim}"
            groups.append(Group(title, _subtracted(finding), lines, look, claimed=claimed))
    others = [world for world in stated.worlds if world != stated.decided_in]
    agreeing = f" The differences of {_joined(others)} have to be on the same side." if others else ""
    note = (
        "Differences with 95% intervals, paired by seed and prompt. Shaded: where the claim is true. "
        f"{stated.decided_in} decides.{agreeing}"
    )
    report.show(section, forest_figure(groups, "hypotheses", note, "difference of scores") if groups else None)
    report.show(section, _table(found, stated, agreeing), folded=True)
    if stated.against:
        weighed = weigh(stated, pools)
        said = [_not_shown(found), *(_weighed_sentence(one, stated) for one in weighed)]
        section.points(Markup("What would count against it"), said)
        report.show(section, _weighed_table(weighed, stated), folded=True)
    return section


def _lead(found: list[Finding], stated: Stated) -> Markup:
    """The question, all verdicts in a sentence, and what has to be known to read the others."""
    verdicts = []
    for verdict, (one, several) in IN_SHORT.items():
        names = [finding.hypothesis.name for finding in found if finding.verdict == verdict]
        verdicts += [f"{_joined(names)} {several if len(names) > 1 else one}"] if names else []
    text = Markup("{} {}.").format(stated.title, "; ".join(verdicts))
    drawn = [world for world in stated.worlds if world in DRAWN]
    if drawn:
        are = "are drawn worlds" if len(drawn) > 1 else "is a drawn world"
        text += Markup(" {} {}: no score of {} is one of GenEval, OCR or PickScore on real images.").format(
            _joined(drawn), are, "theirs" if len(drawn) > 1 else "its"
        )
    tested = any(finding.p == finding.p for finding in found)
    return text + (" P-values have Holm's correction within each family." if tested else "")


def _joined(names: list[str]) -> str:
    """Names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _sentence(finding: Finding, stated: Stated) -> Markup:
    asked = finding.hypothesis
    text = Markup("<strong>{} {}</strong>. Claim: {}").format(asked.name, SAID[finding.verdict], asked.claim)
    text += _known(finding.effects, f", {_difference(finding)}")
    if asked.margin:
        text += f"; to be compared with {-asked.sign * asked.margin:+g}"
    p, of = (finding.p_opposite, "p of the opposite") if finding.verdict == "fails" else (finding.p, "p")
    of = f"one-sided {of}" if asked.margin else of
    if p == p:
        text += Markup("; {} {} in {}").format(of, number(p, "p"), stated.decided_in)
    if finding.verdict == "undecided" and finding.p_equal == finding.p_equal:
        equal = f". The two lines are equal within {stated.equal_within:g} (90% interval)"
        text += equal if finding.p_equal < 0.05 else ". That it is undecided is not evidence of equality"
    if finding.weighted:
        said = ". The result depends on the weighting of tasks: the mean gain recovered differs in the other direction"
        text += Markup("{} in {}").format(said, _joined(finding.weighted))
    if finding.lacking:
        text += Markup(". Not complete: {}").format("; ".join(finding.lacking))
    return text + "."


def _known(effects: dict[str, Difference], of: str = "") -> Markup:
    """The differences (of what) in the worlds that have one, as a sentence of its own; empty without any."""
    known = [
        Markup("{} in {}").format(number(effect, "change"), world)
        for world, effect in effects.items()
        if effect.value == effect.value
    ]
    return Markup(". Difference{}: ").format(of) + Markup(", ").join(known) if known else Markup("")


def _not_shown(found: list[Finding]) -> Markup:
    """Which hypotheses are not shown to hold, which counts against what they claim."""
    parts = []
    for verdict, said in PICTURED.items():
        names = [finding.hypothesis.name for finding in found if finding.verdict == verdict]
        parts += [f"{_joined(names)} ({said})"] if names and verdict != "holds" else []
    return Markup("Hypotheses that are not shown to hold: {}.").format(", ".join(parts) or "none")


WEIGHED = {"counts": "counts against it", "no": "does not count against it", "open": "is open"}


def _weighed_sentence(one: Weighed, stated: Stated) -> Markup:
    text = Markup("<strong>{} {}</strong>. Claim: {}").format(one.entry.name, WEIGHED[one.verdict], one.entry.claim)
    text += _known(one.effects)
    if one.lacking:
        text += Markup(". Not complete: {}").format("; ".join(one.lacking))
    return text + "."


def _weighed_table(weighed: list[Weighed], stated: Stated) -> Table:
    table = Table(
        "against",
        "What would count against it",
        f"Differences between two lines that are no scores, with 95% intervals, paired by seed and prompt; "
        f"{stated.decided_in} decides. A measure counts against the line if its interval is wholly on the named side "
        "of 0. Diversity within a prompt and drift from the base are means over tasks at the guidance scale of points "
        "along training. The lowest gain is that of the task with the lowest gain recovered, a fraction of the "
        "teachers' mean gain; it has no interval and counts by its sign.",
        [
            Column("name", "name"),
            Column("claim", "what counts"),
            *(Column(world, world, "change") for world in stated.worlds),
            Column("verdict", "verdict"),
        ],
    )
    for one in weighed:
        row: Row = {"name": one.entry.name, "claim": one.entry.claim, "verdict": WEIGHED[one.verdict]}
        table.rows.append(row | {world: effect for world, effect in one.effects.items()})
    return table


def _difference(finding: Finding) -> str:
    """Of which lines, or points of one line, the difference is."""
    asked = finding.hypothesis
    at = "" if asked.at is None else f" at {asked.at:.0%} of its budget"
    return f"{asked.line}{at} minus {_subtracted(finding)}"


def _subtracted(finding: Finding) -> str:
    asked = finding.hypothesis
    if asked.minus is None:
        return f"itself at {asked.minus_at:.0%} of its budget"
    return f"{asked.minus}" if not isinstance(asked.minus, str) else "its teacher"


def _table(found: list[Finding], stated: Stated, agreeing: str) -> Table:
    equal = ""
    if stated.equal_within:
        equal = f" Undecided lines are equal if the 90% interval is within {stated.equal_within:g} (two tests)."
    table = Table(
        "hypotheses",
        stated.title,
        f"A hypothesis holds if its p-value in {stated.decided_in}, after Holm's correction within its family, is "
        f"below {stated.level:g} and the difference is on the claimed side.{agreeing} It fails if that is so "
        "of the opposite side, whose p-value is then given, and is undecided otherwise. It is open until all named "
        "seeds of its family have finished; until then there is no p-value. Tests are two-sided, and one-sided where a "
        "margin is allowed for. A claim about a teacher says nothing if the teacher's gain over the base may be below "
        "its gate. The mean gain recovered is the mean over tasks of each task's, so it weighs tasks by what their "
        "teachers gain; where its difference has the other sign than the mean score's, the result depends on the "
        f"weighting.{equal}",
        [
            Column("name", "hypothesis"),
            Column("claim", "claim"),
            Column("difference", "difference"),
            *(Column(world, world, "change") for world in stated.worlds),
            Column("p", "p (Holm)", "p"),
            Column("verdict", "verdict"),
            Column("gain", f"mean gain recovered, {stated.decided_in}", "change"),
            *([Column("equal", f"p of equality within {stated.equal_within:g}", "p")] if stated.equal_within else []),
            Column("family", "family"),
        ],
    )
    for finding in found:
        asked = finding.hypothesis
        p = finding.p_opposite if finding.verdict == "fails" else finding.p
        row: Row = {"name": asked.name, "claim": asked.claim, "p": p, "verdict": finding.verdict}
        row["difference"] = _difference(finding)
        row["gain"] = finding.gains.get(stated.decided_in)
        if stated.equal_within:
            row["equal"] = finding.p_equal
        row["family"] = asked.family or None
        table.rows.append(row | {world: effect for world, effect in finding.effects.items()})
    return table
