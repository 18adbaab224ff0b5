"""Hypotheses stated in advance are answered as their file says, and not before all of their seeds have finished."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from bench.analysis.stats import Design, Difference, exceeds, paired_difference
from bench.errors import UsageError
from report.evidence import collect
from report.forest import Group, forest_figure
from report.hypotheses import Finding, examine
from report.hypotheses_file import Stated, read_hypotheses
from report.lines import pools
from report.page import write
from report.sections import make
from report.style import WIDTHS, drawing, looks
from tests.commands import bench
from tests.report.synthetic import make_run

SEEDS = 5
POINTS = (0.25, 0.5, 1.0)
OPD, RL = {"method": "opd_analytic", "nfe": 1000}, {"method": "multi_reward", "nfe": 1000}


def world(root: Path, name: str, opd: float, rl: float, seeds: int = SEEDS) -> None:
    for seed in range(seeds):
        for method, level in (("opd_analytic", opd), ("multi_reward", rl)):
            folder = make_run(root, method, seed, level, points=POINTS, name=f"{name}-{method}-s{seed}")
            path = folder / "spec.json"
            path.write_text(path.read_text().replace('"backbone": "micro"', f'"backbone": "{name}"'))


def stated(*hypotheses: dict, worlds: dict | None = None) -> Stated:
    return Stated.model_validate(
        {"title": "Which?", "decided_in": "one", "worlds": worlds or {"one": "0-4", "two": "0-4"}, "hypotheses": hypotheses}
    )


def asked(name: str = "H", **more) -> dict:
    return {"name": name, "claim": "it is so", "line": OPD, "minus": RL, "is": "above"} | more


def found(root: Path, given: Stated) -> list[Finding]:
    return examine(given, pools(collect([root])))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("apart") / "results"
    world(root, "one", 0.9, 0.2)
    world(root, "two", 0.9, 0.3)
    return root


@pytest.mark.parametrize(
    ("one", "two", "is_", "verdict"),
    [
        ((0.9, 0.2), (0.9, 0.3), "above", "holds"),
        ((0.9, 0.2), (0.9, 0.3), "below", "fails"),
        ((0.9, 0.2), (0.2, 0.9), "above", "undecided"),  # the other world disagrees
        ((0.5, 0.5), (0.9, 0.3), "above", "undecided"),
    ],
)
def test_verdicts(tmp_path: Path, one: tuple, two: tuple, is_: str, verdict: str) -> None:
    world(tmp_path / "results", "one", *one)
    world(tmp_path / "results", "two", *two)
    (finding,) = found(tmp_path / "results", stated(asked(**{"is": is_})))
    assert finding.verdict == verdict
    assert finding.effects.keys() == {"one", "two"}


def test_effects_are_the_paired_differences_of_the_records(apart: Path) -> None:
    (finding,) = found(apart, stated(asked(tasks=["ocr"])))
    rows = {}
    for path in sorted(apart.glob("one-*/summary.json")):
        summary = json.loads(path.read_text())
        rows[summary["method"], summary["seed"]] = summary["models"]["student"]["ocr"]["rows"]["exact"]
    values = np.array([rows["opd_analytic", s] for s in range(SEEDS)]) - [rows["multi_reward", s] for s in range(SEEDS)]
    design = Design(np.array([""] * 8), np.arange(8) // 2)
    expected = paired_difference(values, np.zeros(8), design)
    assert finding.effects["one"] == expected
    assert expected.value == pytest.approx(values.mean())
    assert finding.p == expected.p  # the only test of its family


def test_nothing_is_decided_before_every_seed_has_finished(apart: Path) -> None:
    given = stated(asked("A"), asked("B", family="f"), asked("C", family="f", line={"method": "cascade", "nfe": 1000}))
    first, second, third = found(apart, given)
    assert first.verdict == "holds"
    assert third.verdict == second.verdict == "open"
    assert third.lacking[0] == "one: cascade of 1,000 NFE lacks seeds 0-4"
    assert second.lacking == ["another test of its family is not complete"]
    assert np.isnan([second.p, third.p, second.p_opposite]).all()  # a look would be a choice of when to stop
    (more,) = found(apart, stated(asked(), worlds={"one": "0-5"}))
    assert more.verdict == "open"
    assert more.lacking == ["one: opd_analytic of 1,000 NFE and multi_reward of 1,000 NFE lack seed 5"]


def test_a_family_is_corrected_together(apart: Path) -> None:
    alone, *both = found(apart, stated(asked("A"), asked("B", family="f"), asked("C", family="f", **{"is": "below"})))
    assert both[0].p == pytest.approx(min(1, 2 * alone.p))


def test_non_inferiority_is_one_sided_at_its_margin(apart: Path) -> None:
    close, far = (found(apart, stated(asked(minus="teacher", margin=margin, tasks=["ocr"])))[0] for margin in (0.9, 0.01))
    assert close.verdict == "holds"
    assert far.verdict != "holds"
    assert close.effects == far.effects  # of the student minus its teacher, whatever the margin
    assert close.p < far.p


def test_exceeds_is_the_test_of_a_shifted_mean() -> None:
    rng = np.random.default_rng(0)
    values = 0.05 + 0.1 * rng.standard_normal((6, 40))
    design = Design(np.array(["a"] * 40), np.arange(40))
    assert exceeds(values, design, -0.1) < 0.01 < exceeds(values, design, 0.04) < 0.5 < exceeds(values, design, 0.06)
    two_sided = paired_difference(values, np.zeros(40), design).p
    assert exceeds(values, design, 0.0) == pytest.approx(two_sided / 2)


def test_two_points_of_one_line_are_compared(apart: Path) -> None:
    given = stated(asked(minus=None, at=0.5, minus_at=0.25, tasks=["geneval"]), worlds={"one": "0-4"})
    (finding,) = found(apart, given)
    gaps = []
    for path in sorted(apart.glob("one-opd_analytic*/evaluations.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        at = {row["share"]: row["rows"]["official"] for row in rows if row["task"] == "geneval"}
        gaps.append(np.array(at[0.5]) - at[0.25])
    strata = np.array(gaps)[:, :6].mean(), np.array(gaps)[:, 6:].mean()
    assert finding.effects["one"].value == pytest.approx(np.mean(strata))
    (lost,) = found(apart, stated(asked(minus=None, at=0.9, minus_at=0.25), worlds={"one": "0-4"}))
    assert lost.lacking == ["one: opd_analytic of 1,000 NFE was not evaluated at 25% and 90%"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decided_in": "three"}, "decided_in: 'three' is not among worlds (one, two)"),
        ({"hypotheses": [asked(), asked()]}, "two entries are called 'H'"),
        ({"hypotheses": [asked(at=0.5)]}, "H: give either minus, or both at and minus_at"),
        ({"hypotheses": [asked(minus=None)]}, "H: give either minus, or both at and minus_at"),
        ({"hypotheses": [asked(**{"is": "over"})]}, "is"),
        ({"worlds": {"one": "4-1"}}, "seeds of one: range '4-1' runs backwards"),
        ({"hypotheses": []}, "hypotheses"),
        ({"hypotheses": [asked(name="")]}, "name"),
        ({"hypotheses": [asked(minus=OPD)]}, "H: it subtracts from a line the same line"),
        ({"hypotheses": [asked(minus=None, at=0.5, minus_at=0.5)]}, "H: it subtracts from a line the same line"),
        ({"hypotheses": [asked(minus="teachers")]}, "minus is a line (method and nfe) or 'teacher', not 'teachers'"),
        ({"hypotheses": [asked(line={"method": "opd_analitic", "nfe": 1})]}, "did you mean 'opd_analytic'"),
        ({"hypotheses": [asked(line=OPD | {"lr": 1})]}, "line.lr"),
        ({"hypotheses": [asked(margin=float("inf"))]}, "margin"),
        ({"hypotheses": [asked(gate=0.1)]}, "H: gate is about teachers, so it needs minus: teacher"),
        ({"marign": 1}, "marign"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    content = {"title": "Which?", "decided_in": "one", "worlds": {"one": 0, "two": 0}, "hypotheses": [asked()]} | change
    path = tmp_path / "h.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError) as caught:
        read_hypotheses(path)
    assert said in str(caught.value)


def test_unknown_tasks_and_ambiguous_lines_are_refused(apart: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown task of H: 'orc'.*ocr"):
        found(apart, stated(asked(tasks=["orc"])))
    world(tmp_path / "results", "one", 0.9, 0.2)
    for seed in range(SEEDS):
        folder = make_run(tmp_path / "results", "opd_analytic", seed, 0.4, settings={"size": 1}, points=POINTS)
        path = folder / "spec.json"
        path.write_text(path.read_text().replace('"backbone": "micro"', '"backbone": "one"'))
    with pytest.raises(UsageError, match=r"H: several lines are opd_analytic of 1,000 NFE: .* and .*; tell them apart by settings"):
        found(tmp_path / "results", stated(asked(), worlds={"one": "0-4"}))
    sized = asked(line=OPD | {"settings": {"params.size": 1}})
    assert found(tmp_path / "results", stated(sized, worlds={"one": "0-4"}))[0].effects["one"].value < 0.5


def test_the_first_section_says_a_sentence_each_with_a_picture_and_a_table(apart: Path, tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    content = {"title": "Which <b>?", "decided_in": "one", "worlds": {"one": "0-4", "two": "0-4"}}
    path.write_text(yaml.safe_dump(content | {"hypotheses": [asked("A"), asked("B<i>", minus="teacher", margin=0.9)]}))
    page = write(make(collect([apart]), read_hypotheses(path)), tmp_path / "report")
    text = page.with_name("report.md").read_text()
    assert text.index("Hypotheses stated in advance") < text.index("Key results")
    assert "A holds. Claim: it is so. Difference, opd_analytic of 1,000 NFE minus multi_reward of 1,000 NFE: +" in text and " in two; p " in text
    assert " one-sided p " in text and "\nWhich &lt;b>? A and B&lt;i> hold. P-values have Holm's correction within each family.\n" in text
    html = page.read_text()
    assert "Which &lt;b&gt;?" in html and "<b>?" not in html and "<i>" not in html
    table = (page.parent / "tables" / "hypotheses.csv").read_text()
    assert "opd_analytic of 1,000 NFE minus multi_reward of 1,000 NFE" in table
    assert "opd_analytic of 1,000 NFE minus its teacher" in table
    assert list((page.parent / "figures").glob("hypotheses*"))


@pytest.mark.parametrize("size", ["column", "page"])
def test_the_picture_shades_where_each_claim_is_true(size: str) -> None:
    look = looks([("one", "one")])

    def group(title: str, value: float, claimed: tuple[float, float] | None) -> Group:
        return Group(title, "another", {"one": Difference(value, value - 0.1, value + 0.1, 0.5)}, look, claimed=claimed)

    long = "A: at equal cost with teachers, the mean score of one line is above that of another line"
    made = [
        group(long, 0.2, (0, np.inf)),
        group("B: it is not above", 0.0, (-np.inf, 0.05)),
        group("C: no claim", 0.1, None),
        group("D: it is far away", 0.1, (5, np.inf)),
    ]
    # Without an interval, as of seeds that all differ by the same.
    made[3].lines["one"] = Difference(0.1, float("nan"), float("nan"), float("nan"))
    shown = forest_figure(made, "x", "note", "difference of scores")
    with drawing():
        drawn = shown.draw(WIDTHS[size])
        drawn.canvas.draw()
        (axes,) = drawn.axes
        ends = axes.get_xlim()
        assert ends[0] < -0.1 and ends[1] > 0.3
        places = axes.get_yticks()
        shaded = {}
        for band in axes.collections:
            (path,) = band.get_paths()
            (left, top), (right, bottom) = path.vertices.min(0), path.vertices.max(0)
            (row,) = [nth for nth, place in enumerate(places) if top < place < bottom]
            shaded[row] = (left, right)
        assert shaded == {0: pytest.approx((0, ends[1])), 1: pytest.approx((ends[0], 0.05))}
        # No title touches the row above or the line below it.
        boxes = [text.get_window_extent().transformed(axes.transData.inverted()) for text in axes.texts]
        for nth, box in enumerate(boxes):
            assert max(box.y0, box.y1) < places[nth] - 0.03
            assert nth == 0 or min(box.y0, box.y1) > places[nth - 1] + 0.03
    chart = shown.chart().to_dict()
    rows = next(iter(chart["datasets"].values()))
    bounds = {row["group"][0]: (row.get("from"), row.get("to")) for row in rows}
    assert bounds == {"A": pytest.approx((0, ends[1])), "B": pytest.approx((ends[0], 0.05)), "C": (None, None), "D": (None, None)}


def test_the_command_takes_a_file_and_refuses_one_for_a_difference(tmp_path: Path) -> None:
    world(tmp_path / "results", "one", 0.9, 0.2, 2)
    path = tmp_path / "h.yaml"
    path.write_text(yaml.safe_dump({"title": "?", "decided_in": "one", "worlds": {"one": "0-1"}, "hypotheses": [asked()]}))
    done = bench(["report", "results", "--hypotheses", "h.yaml", "-o", "out"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "it is so" in (tmp_path / "out" / "report.md").read_text()
    refused = bench(["report", "--diff", "results", "results", "--hypotheses", "h.yaml"], tmp_path)
    assert refused.returncode == 2
    missing = bench(["report", "results", "--hypotheses", "none.yaml"], tmp_path)
    assert missing.returncode == 2 and "none.yaml" in missing.stderr


def test_lines_under_other_conditions_are_not_compared(tmp_path: Path) -> None:
    root = tmp_path / "results"
    world(root, "one", 0.9, 0.2)
    for path in root.glob("one-multi_reward-*/spec.json"):
        path.write_text(path.read_text().replace('"steps": 10', '"steps": 4'))
    with pytest.raises(UsageError, match="H: its lines were evaluated under other conditions: steps"):
        found(root, stated(asked(), worlds={"one": "0-4"}))
    for path in root.glob("one-multi_reward-*/spec.json"):
        path.write_text(path.read_text().replace('"split": "test"', '"split": "validation"'))
    (finding,) = found(root, stated(asked(), worlds={"one": "0-4"}))
    assert finding.verdict == "open" and "multi_reward of 1,000 NFE lacks seeds" in finding.lacking[0]


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    world(tmp_path / "results", "one", 0.9, 0.1, 1)
    for side in ("above", "below"):
        (finding,) = found(tmp_path / "results", stated(asked(**{"is": side}), worlds={"one": 0}))
        assert finding.verdict == "open" and finding.lacking == ["one: a single seed says nothing about a method"]


def test_both_verdicts_need_the_same_evidence(apart: Path) -> None:
    """With many tests in the family neither side is significant any more, whatever the interval."""
    many = [asked(f"H{i}", family="f", **{"is": "below" if i % 2 else "above"}) for i in range(400)]
    assert {finding.verdict for finding in found(apart, stated(*many))} == {"undecided"}


def test_a_teacher_that_gained_too_little_makes_the_claim_say_nothing(apart: Path) -> None:
    claims = [asked(f"H{gate}", minus="teacher", margin=0.9, tasks=["ocr"], gate=gate) for gate in (0.05, 1.0)]
    assert [finding.verdict for finding in found(apart, stated(*claims))] == ["holds", "uninformative"]


def test_teachers_that_are_asked_for_must_be_there_and_cost_what_was_said(tmp_path: Path) -> None:
    root = tmp_path / "results"
    world(root, "one", 0.9, 0.2)
    (finding,) = found(root, stated(asked(line=OPD | {"teacher_nfe": 1000}), worlds={"one": "0-4"}))
    assert finding.verdict == "holds"  # two teachers of 500
    (finding,) = found(root, stated(asked(line=OPD | {"teacher_nfe": 5000}), worlds={"one": "0-4"}))
    assert finding.lacking == ["one: opd_analytic of 1,000 NFE with teachers of 5,000 NFE lacks seeds 0-4"]
    for seed in range(SEEDS):
        make_run(root, "sft", seed, 0.5, teachers=False, points=POINTS, name=f"one-sft-s{seed}")
        path = root / f"one-sft-s{seed}" / "spec.json"
        path.write_text(path.read_text().replace('"backbone": "micro"', '"backbone": "one"'))
    with pytest.raises(UsageError, match="H: sft of 1,000 NFE has no teacher of geneval, ocr"):
        found(root, stated(asked(line={"method": "sft", "nfe": 1000}, minus="teacher"), worlds={"one": "0-4"}))
