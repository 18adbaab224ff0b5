"""The report of the study's first part follows from the archives, and texts say what it says."""

import json
import re
import shlex
import tarfile
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from report.evidence import collect
from report.hypotheses_file import read_hypotheses
from report.page import Report
from report.sections import make
from tests.study_scripts import STUDY

ROOT = STUDY.parents[2]
STORED = STUDY / "part1" / "report"
TASKS = ("geneval", "ocr", "pickscore")
WORLDS = ("study-2", "study-1", "study-3")
VERDICTS = {"holds": "holds", "fails": "does not hold", "undecided": "undecided"}
LINES = {
    "Analytic OPD": ("analytic OPD", "scores"),
    "Joint RL (DiffusionNFT) at 614,400": ("joint RL, long", "3-scores"),
    "Cascade RL (DiffusionNFT) at 614,688": ("cascade, long", "3-scores"),
    "Joint RL (DiffusionNFT)": ("joint RL", "scores"),
    "Cascade RL (DiffusionNFT)": ("cascade", "scores"),
    "each task's own teacher": ("each task's own teacher", "scores"),
    "base at its best guidance": ("base", "scores"),
}
"""The report's name of a line -> that in the README, and the table of study-2 that has it."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Made again by the command in the study's README."""
    folder = tmp_path_factory.mktemp("study")
    for path in (STUDY / "part1").glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder / "results" / "study", filter="data")
    (command,) = re.findall(r"^bench report (.*)$", (STUDY / "README.md").read_text(), re.M)
    *worlds, option, hypotheses, short, to = shlex.split(command)
    assert (option, short) == ("--hypotheses", "-o") and (ROOT / to).samefile(STORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return make(collect([Path(world) for world in worlds]), read_hypotheses(ROOT / hypotheses))


def test_every_stored_table_follows_from_the_records(report: Report) -> None:
    stored = {path.stem: path for path in (STORED / "tables").glob("*.csv")}
    assert {table.name for table in report.tables} == stored.keys() > {"hypotheses", "against", "scores", "claims"}
    for table in report.tables:
        assert stored[table.name].with_suffix(".md").read_text().startswith(table.markdown()), table.name
        made = pd.read_csv(StringIO(table.frame().to_csv(index=False)))
        pd.testing.assert_frame_equal(made, pd.read_csv(stored[table.name]), rtol=1e-9)


def test_the_stored_page_answers_the_hypotheses_first_and_names_no_place_of_a_machine(report: Report) -> None:
    text = (STORED / "report.md").read_text()
    first, *_ = report.sections
    assert first.title == "Hypotheses stated in advance"
    assert text.startswith(f"# Comparison of multi-task post-training\n\n## {first.title}\n\n{first.markdown[0]}")
    for page in (text, (STORED / "index.html").read_text()):
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|mnt)/", page)


def table(name: str) -> pd.DataFrame:
    """A stored table, by its first column."""
    return pd.read_csv(STORED / "tables" / f"{name}.csv", index_col=0)


def short(value: float, signed: bool = False) -> str:
    """A score as the README writes it: .704, or +.012 for a difference."""
    return f"{value:{'+' if signed else ''}.3f}".replace("0.", ".")


def told(row: pd.Series, name: str, signed: bool = True) -> str:
    """A value with its interval: +.012 [-.007, +.030]."""
    value, low, high = (short(row[f"{name}{end}"], signed) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


@pytest.fixture(scope="module")
def readme() -> str:
    return " ".join((ROOT / "README.md").read_text().split())


def test_the_readme_s_answers_are_those_of_the_report(readme: str) -> None:
    for name, row in table("hypotheses").iterrows():
        p = "< .001" if row["p"] < 0.001 else short(row["p"])
        cells = [f"{name}: {row['claim']}", *(told(row, world) for world in WORLDS), p, VERDICTS[row["verdict"]]]
        assert f"| {' | '.join(cells)} |" in readme


def test_the_readme_s_scores_are_those_of_the_report(readme: str) -> None:
    for line, (name, source) in LINES.items():
        row = table(source).loc[line]
        cells = [told(row, column, signed=False) for column in (*TASKS, "mean")]
        spent = {"base": ["–", "–"], "each task's own teacher": ["153,600 each", "–"]}.get(name)
        if not spent:
            cost = table(source.replace("scores", "cost")).loc[line]
            spent = [f"{cost['training']:,.0f}", f"{cost['with_teachers']:,.0f}"]
        assert f"| {' | '.join([name, *spent, *cells])} |" in readme


def of(world: str, text: str) -> str:
    """The effect of the claim in a world whose words begin with a text, or are it if several do."""
    claims = pd.read_csv(STORED / "tables" / "claims.csv")
    own = claims[claims["where"].str.startswith(f"{world},") & claims["claim"].str.startswith(text)]
    (row,) = (row for _, row in own.iterrows() if len(own) == 1 or row["claim"] == text)
    return told(row, "effect")


def test_sentences_of_the_readme_say_what_the_records_do(readme: str) -> None:
    text = readme[readme.index("## Which method works best?") : readme.index("## How do I run and compare")]
    scores = pd.read_csv(STUDY / "part1" / "scores.csv")
    means = scores.assign(long=scores["training_nfe"] > 3e5).groupby(["world", "line", "long"]).mean(numeric_only=True)
    pairs = [(means.loc[w, "cascade", True]["mean"], means.loc[w, "opd_analytic", False]["mean"]) for w in ("study-1", "study-3")]
    assert " and ".join(f"{short(ours)} against {short(other)}" for ours, other in pairs) in text
    opd = table("scores").loc["Analytic OPD"]
    recovered = [f"{opd[f'worst{end}']:.0%}" for end in ("", "_low", "_high")]
    assert opd["worst_task"] == "geneval" and "recovers {} [{}, {}] of it".format(*recovered) in text
    tag = table("tags")["geneval color_attr"]
    assert f"ends at {short(tag['Analytic OPD'])} where the base has {short(tag['base at its best guidance'])}" in text
    base, student, teachers = (means.loc["study-2", line, False]["geneval official"] for line in ("base", "opd_analytic", "teachers"))
    assert f"it would be {(student - base) / (teachers - base):.0%} here" in text
    assert (means.loc["study-2", "cascade", :]["geneval"] > opd["geneval"]).all()
    order = "the paper's order of rivals: Cascade RL (DiffusionNFT) "
    rivals = [of("study-2", f"{order}above")] + [of(world, f"{order}at") for world in WORLDS]
    said = "is {} and, for the long lines, {}; for those it is {} in `study-1` and {} in `study-3`"
    assert said.format(*rivals) in text
    losses = pd.read_csv(STORED / "tables" / "hypotheses.csv", index_col="name").loc["H3", "study-3"]
    images = 3 * 768
    assert losses * images == pytest.approx(-1) and f"one of {images:,} images" in text
    assert f"its first stage, {of('study-2', 'Cascade RL (DiffusionNFT) forgets: ocr, trained in stage 1')} in `study-2`" in text
    apart = table("diversity").query("task == 'ocr'")["diversity@study-2-codec-1"]
    said = "the base's {:.2f} to {} with distillation, {} with joint RL and {} with the cascade at 153,600 NFE; the teachers themselves are at {}"
    lines = ("Analytic OPD", "Joint RL (DiffusionNFT)", "Cascade RL (DiffusionNFT)", "teacher ocr")
    drawn = [f"{apart[line]:.2f}".replace("0.", ".") for line in lines]
    assert said.format(apart["base at its best guidance"], *drawn) in text
    grid = scores[scores["line"] == "base"].groupby("world")["geneval_guidance"].agg(set)
    assert grid.to_dict() == {"study-1": {8.0}, "study-2": {16.0}, "study-3": {16.0}}
    against = table("against")
    assert set(against["verdict"]) == {"does not count against it"}
    assert f"within a prompt, {told(against.loc['Diversity'], 'study-1')}." in text


def test_sentences_of_the_study_s_readme_say_what_the_records_do() -> None:
    text = " ".join((STUDY / "README.md").read_text().split())
    scores = pd.read_csv(STUDY / "part1" / "scores.csv").query("world == 'study-2'")
    long = scores["training_nfe"] > 3e5
    opd = scores[scores["line"] == "opd_analytic"].set_index("seed")
    joint, cascade = (scores[(scores["line"] == line) & long].set_index("seed") for line in ("multi_reward", "cascade"))
    gaps = (opd["mean"] - cascade["mean"]).to_numpy()
    assert len(gaps) == 10
    drawn = gaps[np.random.default_rng(0).integers(10, size=(100_000, 10))].mean(1)
    p = 2 * (drawn <= 0).mean()
    assert 0.005 < p < 0.02 and "a percentile bootstrap over the same ten differences has about .01" in text
    adjusted = table("hypotheses").loc["H2a", "p"]
    # Holm's correction doubles the second largest of four.
    assert f"(p {short(adjusted / 2)}, {short(adjusted)} after correction)" in text
    low = cascade["ocr"].nsmallest(2)
    assert low.index.tolist() == [3, 7] and f"(3 and 7, ocr {short(low[3])} and {short(low[7])})" in text
    rewards = [short((opd[f"{task} reward"] - joint[f"{task} reward"]).mean(), signed=True) for task in TASKS]
    headlines = [short((opd[task] - joint[task]).mean(), signed=True) for task in TASKS]
    assert "{} on geneval, {} on ocr and {} on pickscore by the trained rewards, {}, {} and {} by the headlines".format(
        *rewards, *headlines
    ) in text
    cost = table("cost")
    assert set(cost["reaching"]) == {3} and set(cost["seeds"]) == {10} and len(cost) == 3
    assert "three of ten seeds" in text


def test_seconds_of_the_study_s_readme_are_those_of_the_records() -> None:
    """With the teachers', which the table of costs does not have."""
    text = " ".join((STUDY / "README.md").read_text().split())
    spent: dict[tuple[str, float], list[float]] = {}
    for path in (STUDY / "part1").glob("study-2-*.tar.xz"):
        with tarfile.open(path) as archive:
            for name in archive.getnames():
                if name.endswith("/summary.json"):
                    found = json.load(archive.extractfile(name))
                    line = found["method"], round(found["cost"]["evaluations"]["training"], -4)
                    spent.setdefault(line, []).append(found["cost"]["seconds"]["training"])
    mean = {line: sum(seconds) / len(seconds) for line, seconds in spent.items()}
    taught = mean["opd_analytic", 150_000] + 3 * mean["single_task", 150_000]
    rivals = mean["multi_reward", 610_000], mean["cascade", 610_000]
    said = "its three teachers take {:.0f} seconds of training in `study-2`, long joint RL {:.0f} and the long cascade {:.0f}"
    assert said.format(taught, *rivals) in text
