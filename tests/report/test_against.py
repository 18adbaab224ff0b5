"""What is said beside the verdicts on hypotheses: weighting of tasks, equality, and what counts against a line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from bench.analysis.stats import Difference
from report.against import weigh
from report.evidence import collect
from report.hypotheses import Finding
from report.hypotheses_file import Hypothesis, Stated, read_hypotheses
from report.lines import pools
from report.page import write
from report.sections import make
from tests.report.synthetic import STRATA, TASKS, make_run
from tests.report.test_hypotheses import OPD, RL, asked, found, world

SEEDS = 3
pytestmark = pytest.mark.usefixtures("undrawn")  # these tests read what pages say


@pytest.fixture
def root(tmp_path: Path) -> Path:
    world(tmp_path / "results", "one", 0.8, 0.4, SEEDS)
    return tmp_path / "results"


def stated(**more) -> Stated:
    given = {"title": "Which?", "decided_in": "one", "worlds": {"one": f"0-{SEEDS - 1}"}, "hypotheses": [asked()]}
    return Stated.model_validate(given | more)


def entry(measure: str, is_: str) -> dict:
    return {"name": measure, "claim": "it is so", "line": OPD, "minus": RL, "measure": measure, "is": is_}


def summaries(root: Path, method: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(root.glob(f"one-{method}-s*/summary.json"))]


def mean(row: dict, metric: str) -> float:
    """Of the strata's means, without images that have no value."""
    values = np.array(row["rows"][metric], float)
    return float(np.mean([np.nanmean(values[np.array(row["strata"]) == tag]) for tag in dict.fromkeys(row["strata"])]))


def headline(row: dict) -> float:
    return mean(row, row["headline"])


def average(runs: list[dict], model: str, task: str) -> float:
    return float(np.mean([headline(run["models"][model][task]) for run in runs]))


def gains(root: Path, method: str) -> dict[str, float]:
    """By the protocol's formula, with teachers averaged over the seeds of distillation."""
    own, shown = summaries(root, method), summaries(root, "opd_analytic")
    found = {}
    for task in TASKS:
        base = average(shown, "base", task)
        found[task] = (average(own, "student", task) - base) / (average(shown, f"teacher {task}", task) - base)
    return found


def test_the_mean_gain_is_the_mean_of_the_tasks_gains(root: Path) -> None:
    (finding,) = found(root, stated())
    ours, theirs = gains(root, "opd_analytic"), gains(root, "multi_reward")
    assert finding.gains["one"] == pytest.approx(np.mean([*ours.values()]) - np.mean([*theirs.values()]))
    (single,) = found(root, stated(hypotheses=[asked(tasks=["ocr"])]))
    assert single.gains == {}  # its sign is the score's


def change(root: Path, method: str, edit: Callable[[dict], None]) -> None:
    for path in root.glob(f"one-{method}-s*/summary.json"):
        summary = json.loads(path.read_text())
        edit(summary["models"])
        path.write_text(json.dumps(summary))


def level(models: dict, model: str, task: str, ones: int) -> None:
    row = models[model][task]
    row["rows"][row["headline"]] = [1.0] * ones + [0.0] * (len(STRATA[task]) - ones)


def test_a_result_that_depends_on_the_weighting_is_called_so(root: Path, tmp_path: Path) -> None:
    """Distillation is ahead on geneval by 1 and behind on ocr by 1/4, where the teachers gain 1/8 only."""

    def edit(geneval: int, ocr: int) -> Callable[[dict], None]:
        def edited(models: dict) -> None:
            for model, counts in {"student": (geneval, ocr), "base": (0, 4), "teacher ocr": (0, 5), "teacher geneval": (10, 4)}.items():
                level(models, model, "geneval", counts[0])
                level(models, model, "ocr", counts[1])

        return edited

    change(root, "opd_analytic", edit(10, 4))
    change(root, "multi_reward", edit(0, 6))
    (finding,) = found(root, stated())
    assert finding.effects["one"].value == pytest.approx((1 - 0.25) / 2)
    assert finding.gains["one"] == pytest.approx((1 - 0.25 / 0.125) / 2)
    assert finding.weighted == ["one"]
    page = write(make(collect([root]), stated()), tmp_path / "report")
    said = "depends on the weighting of tasks: the mean gain recovered differs in the other direction in one"
    assert said in page.with_name("report.md").read_text()


@pytest.mark.parametrize(
    ("within", "said"),
    [(0.9, ". The two lines are equal within 0.9 (90% interval)."), (0.001, ". That it is undecided is not evidence of equality.")],
)
def test_undecided_lines_are_called_equal_only_within_the_stated_margin(tmp_path: Path, within: float, said: str) -> None:
    world(tmp_path / "results", "one", 0.5, 0.5, SEEDS)
    given = stated(equal_within=within, hypotheses=[asked(), asked("T", minus="teacher")])
    lines, teacher = found(tmp_path / "results", given)
    assert (lines.p_equal < 0.05) == (within == 0.9)
    assert np.isnan(teacher.p_equal)  # it is about two lines
    page = write(make(collect([tmp_path / "results"]), given), tmp_path / "report")
    (line,) = [line for line in page.with_name("report.md").read_text().splitlines() if line.startswith("- H is undecided. Claim: it is so.")]
    assert line.endswith(said)


def test_the_table_has_the_p_value_of_what_is_so(root: Path, tmp_path: Path) -> None:
    """A claim whose opposite holds has the opposite's, where tests are one-sided too."""
    given = stated(hypotheses=[asked(**{"is": "below"}, margin=0.01)])
    (finding,) = found(root, given)
    assert finding.verdict == "fails" and finding.p_opposite < 0.05 < finding.p
    page = write(make(collect([root]), given), tmp_path / "report")
    (p,) = pd.read_csv(page.parent / "tables" / "hypotheses.csv")["p"]
    assert p == pytest.approx(finding.p_opposite, abs=1e-3)
    assert re.search(r"^- H fails: the opposite holds\..*; one-sided p of the opposite (&lt;)?0\.\d+ in one\.$", page.with_name("report.md").read_text(), re.M)


def test_what_counts_against_a_line_begins_with_the_hypotheses_that_are_not_shown(root: Path, tmp_path: Path) -> None:
    claims = [asked("A"), asked("B", **{"is": "below"}), asked("C", margin=0.1, minus="teacher", gate=0.9), asked("D", margin=5.0, **{"is": "below"})]
    several = [asked(name, **{"is": "below"}) for name in "BEF"]
    cases = ((claims, "B (fails), C (says nothing)"), ([claims[0], claims[3]], "none"), (several, "B, E and F (fails)"))
    for nth, (hypotheses, names) in enumerate(cases):
        given = stated(hypotheses=hypotheses, against=[entry("drift", "above")])
        page = write(make(collect([root]), given), tmp_path / str(nth))
        said = f"\nWhat would count against it\n\n- Hypotheses that are not shown to hold: {names}.\n- drift "
        assert said in page.with_name("report.md").read_text()


def test_measures_are_compared_on_the_images_that_have_them(root: Path) -> None:
    diversity, drift = weigh(stated(against=[entry("diversity", "below"), entry("drift", "above")]), pools(collect([root])))
    for weighed, metric in ((diversity, "diversity@space"), (drift, "drift")):
        ours, theirs = (
            np.mean([mean(run["models"]["student"][task], metric) for run in summaries(root, method) for task in TASKS])
            for method in ("opd_analytic", "multi_reward")
        )
        assert weighed.effects["one"].value == pytest.approx(ours - theirs)
        assert weighed.effects["one"].low < ours - theirs < weighed.effects["one"].high
    # The same values: what is below for one is not above for the other.
    assert diversity.verdict == ("counts" if diversity.effects["one"].high < 0 else "no")
    assert drift.verdict == ("counts" if drift.effects["one"].low > 0 else "no")


@pytest.mark.parametrize(("is_", "verdict"), [("below", "no"), ("above", "counts")])
def test_the_lowest_gain_is_of_each_lines_own_worst_task(root: Path, is_: str, verdict: str) -> None:
    (weighed,) = weigh(stated(against=[entry("lowest gain", is_)]), pools(collect([root])))
    ours, theirs = (min(gains(root, method).values()) for method in ("opd_analytic", "multi_reward"))
    assert weighed.effects["one"].value == pytest.approx(ours - theirs) and ours > theirs
    assert weighed.verdict == verdict


def test_nothing_counts_before_every_seed_has_finished(root: Path, tmp_path: Path) -> None:
    given = stated(worlds={"one": f"0-{SEEDS}"}, against=[entry("lowest gain", "above")])
    (finding,) = found(root, given.model_copy(update={"equal_within": 0.9}))
    assert np.isnan([finding.p, finding.p_equal]).all() and not np.isnan(finding.gains["one"])
    (weighed,) = weigh(given, pools(collect([root])))
    assert weighed.verdict == "open" and f"lack seed {SEEDS}" in weighed.lacking[0]
    page = write(make(collect([root]), given), tmp_path / "report")
    assert "lowest gain is open. Claim: it is so. Difference: " in page.with_name("report.md").read_text()
    assert (page.parent / "tables" / "against.csv").is_file()


def test_what_cannot_be_told_is_open(root: Path) -> None:
    single = stated(worlds={"one": 0})
    (finding,) = found(root, single)
    assert finding.verdict == "open" and finding.lacking == ["one: a single seed says nothing about a method"]
    same = asked(minus=None, at=0.5, minus_at=0.501)
    (finding,) = found(root, stated(hypotheses=[same]))
    assert finding.lacking == ["one: opd_analytic of 1,000 NFE has one evaluation for both 50% and 50%"]
    change(root, "multi_reward", lambda models: models["student"]["ocr"]["rows"].pop("drift"))
    (weighed,) = weigh(stated(against=[entry("drift", "above")]), pools(collect([root])))
    assert weighed.lacking == ["one: drift on ocr is not recorded in every run"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minus": OPD}, "drift: it subtracts from a line the same line"),
        ({"line": {"method": "opd_analitic", "nfe": 1}}, "did you mean 'opd_analytic'"),
        ({"measure": "drifts"}, "measure"),
        ({"name": "H"}, "two entries are called 'H'"),
    ],
)
def test_entries_that_cannot_be_meant_are_refused(tmp_path: Path, change: dict, said: str) -> None:
    content = {"title": "?", "decided_in": "one", "worlds": {"one": "0-1"}, "hypotheses": [asked()]}
    (tmp_path / "h.yaml").write_text(yaml.safe_dump(content | {"against": [entry("drift", "above") | change]}))
    with pytest.raises(Exception, match=said):
        read_hypotheses(tmp_path / "h.yaml")


def test_costs_of_teachers_are_the_mean_over_runs(tmp_path: Path) -> None:
    for seed, cost in enumerate((500.0, 700.0)):
        path = make_run(tmp_path / "results", "opd_analytic", seed) / "summary.json"
        summary = json.loads(path.read_text())
        summary["teachers"]["ocr"]["evaluations"] = cost
        path.write_text(json.dumps(summary))
    (pool,) = [pool for pool in pools(collect([tmp_path / "results"])) if not pool.whole]
    assert [line.teacher_nfe for line in pool.lines] == [1100.0]


def test_equal_signs_do_not_depend_on_the_weighting() -> None:
    hypothesis = Hypothesis.model_validate(asked())
    effects = {world: Difference(value, value, value, 0.5) for world, value in (("a", 0.1), ("b", -0.1))}
    finding = Finding(hypothesis, effects, "undecided", gains={"a": 0.2, "b": 0.2})
    assert finding.weighted == ["b"]
