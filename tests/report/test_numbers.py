"""The report says what the records say: every number of the page is in its tables, and pandas finds the same from the raw
files, also where runs are missing, failed, or had another budget."""

import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import trim_mean

from bench.errors import UsageError
from report.diff import difference
from report.evidence import collect
from report.lines import pools
from report.page import write
from report.sections import make
from report.tables import BASE, TEACHERS
from tests.report.synthetic import TASKS, TITLES, make_probes, make_run, make_study

UGLY = "<script>alert('x')</script> \"quotes\" & 🦊 עברית " + "long " * 400


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods with levels .8, .5 and .2; a missing seed, a failed and an unfinished run, another budget."""
    folder = tmp_path_factory.mktemp("records") / "results"
    for seed in range(4):
        make_run(folder, "opd_analytic", seed, 0.8, pictures=seed > 1)
        make_run(folder, "multi_reward", seed, 0.2, teachers=False, pictures=seed > 2)
        if seed:
            make_run(folder, "sft", seed, 0.5)
        make_run(folder, "opd_analytic", seed, 0.9, budget=5000, settings={"size": "large"})
    make_run(folder, "cascade", 0, 0.5, state="failed", prompt=UGLY)
    make_run(folder, "cascade", 1, 0.5, state="unfinished")
    broken = make_run(folder, "merge", 0, 0.5, name="merge-broken-s0")
    (broken / "summary.json").write_text("{")
    return folder


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    beside = root.parent / "beside"
    evidence = collect([root, *make_probes(beside), make_study(beside)])
    return write(make(evidence), tmp_path_factory.mktemp("report")).parent


def csv(written: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(StringIO((written / "tables" / f"{name}.csv").read_text()))


def known_numbers(written: Path) -> set[float]:
    """Every number of the tables beside a page."""
    known: set[float] = set()
    for path in (written / "tables").glob("*.csv"):
        frame = pd.read_csv(path)
        # Columns of settings mix words and numbers.
        cells = pd.to_numeric(pd.Series([value for column in frame for value in frame[column]]), errors="coerce")
        known |= set(cells.dropna().astype(float))
    return known


def shown_numbers(written: Path) -> list[float]:
    shown = re.findall(r'<data value="([^"]+)"', (written / "index.html").read_text())
    return [float(text) for text in shown if text != "nan"]


def test_every_number_of_the_page_is_in_its_tables(written: Path) -> None:
    shown = shown_numbers(written)
    assert len(shown) > 400
    assert not set(shown) - known_numbers(written)


def test_every_point_of_a_figure_is_in_the_tables(written: Path) -> None:
    """What hovering tells."""
    told = re.findall(r"<title>([^<]*: [^<]*)</title>", (written / "index.html").read_text())
    values = {float(number) for text in told for number in re.findall(r"-?\d\.\d{6,}", text)}
    assert len(values) > 20
    assert not values - known_numbers(written)


def raw(root: Path, method: str, budget: int) -> dict[int, dict]:
    found = {}
    for path in root.glob(f"{method}-*/summary.json"):
        spec = json.loads((path.parent / "spec.json").read_text())["spec"]
        if spec["budget"]["evaluations"] == budget and path.read_text() != "{":
            found[spec["seed"]] = json.loads(path.read_text())
    return found


def stratified(row: dict) -> float:
    frame = pd.DataFrame({"value": row["rows"][row["headline"]], "stratum": row["strata"]})
    return frame.groupby("stratum")["value"].mean().mean()


@pytest.mark.parametrize(("method", "seeds"), [("opd_analytic", 4), ("multi_reward", 4), ("sft", 3)])
def test_scores_are_what_pandas_finds_in_the_raw_files(root: Path, written: Path, method: str, seeds: int) -> None:
    scores = csv(written, "scores")
    (row,) = scores[scores["line"] == TITLES[method]].to_dict("records")
    summaries = raw(root, method, 1000)
    assert row["seeds"] == len(summaries) == seeds
    means = {t: np.mean([stratified(s["models"]["student"][t]) for s in summaries.values()]) for t in TASKS}
    for task, mean in means.items():
        assert row[task] == pytest.approx(mean, abs=1e-12)
        assert row[f"{task}_low"] <= mean <= row[f"{task}_high"]
    assert row["mean"] == pytest.approx(np.mean(list(means.values())), abs=1e-12)
    reference = raw(root, "opd_analytic", 1000)
    common = summaries.keys() & reference.keys()
    gap = np.mean([
        stratified(summaries[s]["models"]["student"][t]) - stratified(reference[s]["models"]["student"][t])
        for s in common for t in TASKS
    ])  # fmt: skip
    if method != "opd_analytic":
        assert row["against"] == pytest.approx(gap, abs=1e-12)
    base, top = (
        np.mean([stratified(reference[0]["models"][f"teacher {t}" if own else "base"][t]) for t in TASKS])
        for own in (False, True)
    )
    assert row["gain"] == pytest.approx((row["mean"] - base) / (top - base), abs=1e-9)
    means = dict(zip(scores["line"], scores["mean"]))
    assert means[BASE] == pytest.approx(base, abs=1e-12)
    assert means[TEACHERS] == pytest.approx(top, abs=1e-12)


def test_aggregates_are_what_scipy_and_counting_find(root: Path, written: Path) -> None:
    rows = csv(written, "aggregates").set_index("line")
    summaries = {method: raw(root, method, 1000) for method in ("opd_analytic", "multi_reward", "sft")}
    scores = {m: np.array([[stratified(s["models"]["student"][t]) for t in TASKS] for s in found.values()])
              for m, found in summaries.items()}  # fmt: skip
    models = summaries["opd_analytic"][0]["models"]
    base = np.array([stratified(models["base"][t]) for t in TASKS])
    top = np.array([stratified(models[f"teacher {t}"][t]) for t in TASKS])
    for method, found in scores.items():
        (row,) = [row for label, row in rows.iterrows() if label == TITLES[method]]
        assert row["iqm"] == pytest.approx(trim_mean(((found - base) / (top - base)).ravel(), 0.25), abs=1e-12)
        assert row["iqm_low"] <= row["iqm"] <= row["iqm_high"]
        if method != "opd_analytic":
            gaps = found.mean(1)[:, None] - scores["opd_analytic"].mean(1)[None]
            assert row["chance"] == pytest.approx(((gaps > 0) + (gaps == 0) / 2).mean(), abs=1e-12)


def test_curves_and_falls_are_what_pandas_finds(root: Path, written: Path) -> None:
    rows = []
    for path in root.glob("opd_analytic-*/evaluations.jsonl"):
        if json.loads((path.parent / "spec.json").read_text())["spec"]["budget"]["evaluations"] == 1000:
            rows += [json.loads(line) for line in path.read_text().splitlines()]
    flat = pd.DataFrame([{"task": r["task"], "share": r["share"], "score": stratified(r)} for r in rows])
    wanted = flat.groupby(["task", "share"])["score"].mean()
    curves = csv(written, "curves")
    mine = curves[(curves["line"] == TITLES["opd_analytic"]) & (curves["nfe"] <= 1000)]
    assert len(mine) == len(wanted) == 4
    for row in mine.to_dict("records"):
        assert row["score"] == pytest.approx(wanted[row["task"], row["share"]], abs=1e-12)
        assert row["nfe"] == pytest.approx(1000 * row["share"])
        assert row["seconds"] == pytest.approx(10 * row["share"])
    falls = csv(written, "forgetting")
    for task in TASKS:
        drop = max(wanted[task]) - wanted[task, 1.0]
        line = falls[(falls["line"] == mine.iloc[0]["line"]) & (falls["task"] == task)].iloc[0]
        assert line["drop"] == pytest.approx(drop, abs=1e-12)


@pytest.mark.parametrize("metric", ["drift", "diversity@space", "diversity over prompts@space", "entropy.colour"])
def test_measures_are_what_pandas_finds_in_the_raw_files(root: Path, written: Path, metric: str) -> None:
    """Means over the images that have a value, by stratum; the colour only in the stratum whose captions leave it open."""

    def mean(row: dict) -> float:
        flat = pd.DataFrame({"stratum": row["strata"], "value": row["rows"][metric]}).astype({"value": float})
        return flat.groupby("stratum")["value"].mean().dropna().mean()

    table = csv(written, "diversity").set_index(["line", "task"])
    for method in ("opd_analytic", "multi_reward", "sft"):
        (label,) = {line for line, _ in table.index if line == TITLES[method]}
        summaries = raw(root, method, 1000).values()
        found = {
            task: np.mean([mean(summary["models"]["student"][task]) for summary in summaries])
            for task in TASKS
            if metric in next(iter(summaries))["models"]["student"][task]["rows"]
        }
        for task, value in found.items():
            assert table.loc[(label, task), metric] == pytest.approx(value, abs=1e-12)
        assert table.loc[(label, "mean"), metric] == pytest.approx(np.mean([*found.values()]), abs=1e-12)
        assert len(found) == 1 if metric == "entropy.colour" else len(found) == 2
    if metric == "drift":
        path = csv(written, "drift")
        ends = path[path["share"] == 1].set_index(["line", "task"])
        for key, value in ends["drift"].items():
            assert value == pytest.approx(table.loc[key, "drift"], abs=1e-12)
            assert ends.loc[key, "distance"] == pytest.approx(value**0.5, abs=1e-12)


def test_transfer_and_profiles_are_what_counting_finds(root: Path, written: Path) -> None:
    """From the raw files: of every line at the first budget, its mean forgetting, and when its runs reach their targets."""
    methods = ("opd_analytic", "multi_reward", "sft")
    levels: dict[tuple, float] = {}
    for method in methods:
        for seed in raw(root, method, 1000):
            for path in root.glob(f"{method}-*-s{seed}/evaluations.jsonl"):
                if json.loads((path.parent / "spec.json").read_text())["spec"]["budget"]["evaluations"] == 1000:
                    for line in map(json.loads, path.read_text().splitlines()):
                        levels[method, seed, line["task"], line["share"]] = stratified(line)
    table = csv(written, "transfer").set_index("line")["forgetting"]
    for method in methods:
        (label,) = [line for line in table.index if line == TITLES[method]]
        seeds = raw(root, method, 1000)
        drops = [levels[method, seed, task, 0.5] - levels[method, seed, task, 1.0] for seed in seeds for task in TASKS]
        assert table[label] == pytest.approx(np.mean(drops), abs=1e-12)
    models = raw(root, "opd_analytic", 1000)[0]["models"]
    best = {task: max(stratified(models[f"teacher {other}"][task]) for other in TASKS) for task in TASKS}
    common = set.intersection(*(set(raw(root, method, 1000)) for method in methods))
    cost = {
        (method, seed, task): min(
            [1000 * share for share in (0.5, 1.0) if levels[method, seed, task, share] >= 0.9 * best[task]],
            default=np.inf,
        )
        for method in methods for seed in common for task in TASKS
    }  # fmt: skip
    quickest = {(seed, task): min(cost[method, seed, task] for method in methods) for seed in common for task in TASKS}
    for row in csv(written, "profiles").to_dict("records"):
        method = next(method for method in methods if row["line"] == TITLES[method])
        within = [
            cost[method, *problem] <= row["factor"] * fastest
            for problem, fastest in quickest.items()
            if np.isfinite(cost[method, *problem])
        ]
        assert row["solved"] == pytest.approx(sum(within) / len(quickest), abs=1e-12), row


def test_what_is_missing_is_said(root: Path, written: Path) -> None:
    page = (written / "report.md").read_text()
    answer = page.split("## Scores and cost")[0]
    assert "No finished run for seeds 0: SFT on teachers' samples." in answer
    assert "it spent about 5,000 training NFE per run instead of 1,000: Analytic OPD" in answer
    assert "failed: it broke" in answer
    assert "merge-broken-s0: damaged" in answer
    assert re.search(r"cascade-\S+-s1 is not finished", answer)
    table = csv(written, "runs")
    assert set(table["state"]) == {"done", "failed", "unfinished"}
    assert len(table) + len(csv(written, "2-runs")) == len(list(root.glob("*/spec.json"))) - 1  # less the damaged one
    assert (table["command"].str.contains("--preset")).all()


def test_only_equal_budgets_are_ranked(root: Path, written: Path) -> None:
    pool, other = pools(collect([root]))
    assert {line.method for line in pool.lines} == {"opd_analytic", "multi_reward", "sft"}
    assert [line.training_nfe for line in other.lines] == [5000]
    cost = csv(written, "cost")
    assert set(cost["training"]) == {1000}
    assert set(cost["with_teachers"]) == {1000, 2000}
    assert set(csv(written, "2-cost")["training"]) == {5000}
    assert csv(written, "scores")["p"].notna().sum() == 2  # two rivals of the reference, nobody of another budget


def test_bold_is_for_clear_winners_only(tmp_path: Path) -> None:
    def strong(levels: dict[str, float]) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "results"
        for method, level in levels.items():
            for seed in range(5):
                make_run(folder, method, seed, level)
        report = make(collect([folder]))
        table = next(t for t in report.tables if t.name == "scores")
        return [table.rows[index]["line"] for index, key in table.strong if key == "mean"]

    assert strong({"opd_analytic": 0.95, "sft": 0.1}) == ["Analytic OPD"]
    assert strong({"opd_analytic": 0.5, "sft": 0.5}) == []


def test_the_same_records_make_the_same_files(root: Path, written: Path, tmp_path: Path) -> None:
    beside = root.parent / "beside"
    again = write(
        make(collect([root, *(beside / n for n in ("noise.json", "excess.json", "a-study"))])), tmp_path / "a"
    )
    again = again.parent
    for path in written.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(written)).read_bytes(), path.name


def test_pieces_to_paste(written: Path) -> None:
    tex = (written / "tables" / "scores.tex").read_text()
    for word in ("\\toprule", "\\midrule", "\\bottomrule", "Analytic OPD", "\\label{tab:scores}"):
        assert word in tex
    assert "teachers' samples" in tex
    for size in ("column", "page"):
        for kind in ("pdf", "svg", "png"):
            assert (written / "figures" / f"scores-{size}.{kind}").stat().st_size > 500
    assert (written / "tables" / "scores.md").read_text().count("\n") == 2 + 3 + 4 + 2  # and the note


def test_nothing_yet_is_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page = write(make(collect([tmp_path / "results"])), tmp_path / "out")
    assert "No finished run was found" in page.read_text()
    make_run(tmp_path / "half" / "results", "sft", 0, state="unfinished")
    page = write(make(collect([tmp_path / "half" / "results"])), tmp_path / "out")
    assert "is not finished" in page.read_text()
    with pytest.raises(UsageError, match="does not exist"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UsageError, match="neither a comparison nor"):
        collect([tmp_path / "x.json"])


def test_differences_between_two_sets(tmp_path: Path) -> None:
    for side, level in (("a", 0.1), ("b", 0.95)):
        for seed in range(5):
            make_run(tmp_path / side, "sft", seed, 0.5)
            make_run(tmp_path / side, "opd_analytic", seed, level, name=f"opd_analytic-same-s{seed}")
    make_run(tmp_path / "b", "merge", 0, 0.5)
    report = difference(collect([tmp_path / "a"]), collect([tmp_path / "b"]))
    table, _ = report.tables
    verdicts = {(row["line"], row["task"]): row["verdict"] for row in table.rows}
    assert {verdicts[TITLES["sft"], task] for task in TASKS} == {"identical"}
    assert {verdicts[TITLES["opd_analytic"], task] for task in TASKS} == {"changed"}
    assert any("Only in the second set: Merged teachers" in text for text in report.sections[0].markdown)
    written = write(report, tmp_path / "difference").parent
    shown = shown_numbers(written)
    assert len(shown) > 10
    assert not set(shown) - known_numbers(written)
    counts = csv(written, "verdicts").set_index("verdict")["count"]
    assert counts.to_dict() == {"changed": 2, "identical": 2, "no significant change": 0}
