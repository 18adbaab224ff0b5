"""The report of the study's first part follows from the archives, and texts say what it says."""

import itertools
import re
import shlex
import tarfile
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis.comparison import targets
from bench.analysis.comparison import taught as with_teachers
from bench.analysis.forgetting import score_matrix
from report.against import weigh
from report.evidence import Evidence, collect
from report.hypotheses_file import Against, Stated, read_hypotheses
from report.lines import pools
from report.page import Report
from report.sections import make
from tests.archives import summaries
from tests.study_scripts import STUDY, short

ROOT = STUDY.parents[2]
STORED = STUDY / "part1" / "report"
FINDINGS = STUDY / "FINDINGS.md"
TASKS = ("geneval", "ocr", "pickscore")
WORLDS = ("study-2", "study-1", "study-3")
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
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evidence, Stated]:
    """Read as by the command in the study's README."""
    folder = tmp_path_factory.mktemp("study")
    for path in (STUDY / "part1").glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder / "results" / "study", filter="data")
    (command,) = re.findall(r"^bench report (.*)$", (STUDY / "README.md").read_text(), re.M)
    *worlds, option, hypotheses, short, to = shlex.split(command)
    assert (option, short) == ("--hypotheses", "-o") and (ROOT / to).samefile(STORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return collect([Path(world) for world in worlds]), read_hypotheses(ROOT / hypotheses)


@pytest.fixture(scope="module")
def report(records: tuple[Evidence, Stated]) -> Report:
    """Made again from the archives."""
    return make(*records)


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


def told(row: pd.Series, name: str, signed: bool = True) -> str:
    """A value with its interval: +.012 [-.007, +.030]."""
    value, low, high = (short(row[f"{name}{end}"], signed) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


@pytest.fixture(scope="module")
def readme() -> str:
    """What the README says, and what was found beside it."""
    return " ".join(f"{(ROOT / 'README.md').read_text()} {FINDINGS.read_text()}".split())


def test_the_readme_s_answers_are_those_of_the_report(readme: str) -> None:
    for name, row in table("hypotheses").iterrows():
        p = "< .001" if row["p"] < 0.001 else short(row["p"])
        cells = [f"{name}: {row['claim']}", *(told(row, world) for world in WORLDS), p, row["verdict"]]
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


def effect(world: str, claim: str) -> str:
    """The effect of the claim in a world whose words these are, or begin like this if only one claim's do."""
    claims = pd.read_csv(STORED / "tables" / "claims.csv")
    own = claims[claims["where"].str.startswith(f"{world},") & claims["claim"].str.startswith(claim)]
    (row,) = (row for _, row in own.iterrows() if len(own) == 1 or row["claim"] == claim)
    return told(row, "effect")


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """Final scores, run by run; `long` are the lines that cost as much as a student and its teachers."""
    found = pd.read_csv(STUDY / "part1" / "scores.csv")
    return found.assign(long=found["training_nfe"] > 3e5)


@pytest.fixture(scope="module")
def means(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.groupby(["world", "line", "long"]).mean(numeric_only=True)


def test_sentences_of_the_readme_say_what_the_records_do(readme: str, scores: pd.DataFrame, means: pd.DataFrame) -> None:
    text = readme
    mean = lambda world, line, column, long=False: short(means.loc[(world, line, long), column])
    pairs = [(mean(w, "cascade", "mean", True), mean(w, "opd_analytic", "mean")) for w in ("study-1", "study-3")]
    assert " and ".join(f"{rival} against {ours}" for rival, ours in pairs) in text and all(a > b for a, b in pairs)
    reaching = {world: [table(f"{n}-cost")["reaching"][line] for line in list(LINES)[:3]] for world, n in zip(WORLDS, (3, 6, 9))}
    assert reaching == {"study-2": [3, 8, 0], "study-1": [2, 2, 0], "study-3": [0, 1, 1]}
    assert "with 8 of 10 seeds, distillation with 3, the long cascade with none; in `study-1` 2, 2 and 0 of 3 seeds do, in `study-3` 1, 0 and 1." in text
    along = table("2-curves").loc["Joint RL (DiffusionNFT)"].pivot(index="share", columns="task", values="score").mean(axis=1)
    assert along.idxmax() == 0.5 and f"not shown: {short(along[1.0])} at guidance 1 after {short(along[0.5])} at half of its budget." in text
    fell = table("2-forgetting").query("task == 'geneval'").loc["Joint RL (DiffusionNFT)"]
    assert f"at a third of the budget, to the end by {told(fell, 'drop', signed=False)} (the best point" in text
    geneval = table("2-curves").query("task == 'geneval'").loc["Joint RL (DiffusionNFT)"].set_index("share")["score"]
    assert geneval.idxmax() == pytest.approx(1 / 3, abs=1e-3)
    assert (table("hypotheses").loc[["H1a", "H2a"], "equal"] > 0.05).all()
    assert "fewer seconds than distillation with its teachers, 641 against 678." in text and "in `study-3` 678, 730 and 641, so" in text
    assert table("hypotheses").loc["H2a", "study-3"] < 0 and "H2a depends on the weighting of the tasks: in `study-3`" in text
    assert "depends on the weighting of tasks: the mean gain recovered differs in the other direction in study-3" in (STORED / "report.md").read_text()
    # By task, distillation of the budget is not above its rivals on geneval, and is on the others.
    for rival in ("multi_reward", "cascade"):
        gained = {task: means.loc[("study-2", "opd_analytic", False), task] - means.loc[("study-2", rival, False), task] for task in TASKS}
        assert gained["geneval"] < 0.01 and min(gained["ocr"], gained["pickscore"]) > 0.02
    strict = [mean("study-2", line, "geneval") for line in ("cascade", "opd_analytic")]
    assert "in `study-2`, {} against {}, and the long one in all three worlds.".format(*strict) in text
    rivals = [(line, long) for line in ("multi_reward", "cascade") for long in (False, True)]
    official = {
        world: [mean(world, "opd_analytic", "geneval official"), *(mean(world, line, "geneval official", long) for line, long in rivals)]
        for world in WORLDS
    }
    said = (
        "it has {} in `study-2` against {} for joint RL, {} for long joint RL, {} for the cascade and {} for the long one; in `study-1` "
        "{} against {}, {}, {} and {}; in `study-3` {} against {}, {}, {} and {}."
    )
    assert said.format(*(value for world in WORLDS for value in official[world])) in text
    recovered = {}
    for column in ("geneval", "geneval official"):
        for world in WORLDS:
            base, student, teachers = (means.loc[(world, line, False), column] for line in ("base", "opd_analytic", "teachers"))
            recovered[column, world] = f"{(student - base) / (teachers - base):.0%}"
    strict, by_rule = ([recovered[column, world] for world in WORLDS] for column in ("geneval", "geneval official"))
    assert "{} of it in `study-2`, {} in `study-1`, {} in `study-3`; by the official rule {}, {} and {}".format(*strict, *by_rule) in text
    assert all(means.loc[(w, "cascade", True), "geneval"] > means.loc[(w, "opd_analytic", False), "geneval"] for w in WORLDS)
    tag = {world: [means.loc[(world, line, False), "geneval color_attr"] for line in ("opd_analytic", "base")] for world in WORLDS}
    assert f"in `study-2`, {short(tag['study-2'][0])} against {short(tag['study-2'][1])}, though in no other world" in text
    assert [student < base for student, base in tag.values()] == [True, False, False]
    order = "the paper's order of rivals: Cascade RL (DiffusionNFT) "
    rivals = [effect(world, f"{order}{which}") for which in ("above", "at") for world in WORLDS]
    assert "{} in `study-2`, {} in `study-1` and {} in `study-3`, and for the long lines {}, {} and {}.".format(*rivals) in text
    forgets = "Cascade RL (DiffusionNFT){} forgets: {}"
    lost = [effect("study-2", forgets.format(" at 614,688", f"{task}, trained in stage {n}")) for n, task in ((1, "ocr"), (2, "pickscore"))]
    assert "the long one's ocr changes by {} and its pickscore by {},".format(*lost) in text
    assert f"the short one's ocr by {effect('study-2', forgets.format('', 'ocr, trained in stage 1'))}." in text
    elsewhere = [effect(world, forgets.format(" at 614,688", "ocr, trained in stage 1")) for world in WORLDS[1:]]
    more = [effect(world, forgets.format(" at 614,688", "pickscore, trained in stage 2")) for world in WORLDS[1:]]
    said = "In the other worlds the long one's ocr is undecided, {} and {}, and its pickscore changes by {} and {}."
    assert said.format(*elsewhere, *more) in text
    images = 3 * 768
    assert table("hypotheses").loc["H3", "study-3"] * images == pytest.approx(-1) and f"a net loss of one of {images:,} images" in text
    assert f"its sign rests on one image of {images:,}." in text
    apart = pd.concat([table(name).query("task == 'ocr'") for name in ("diversity", "2-diversity")])["diversity@study-2-codec-1"]
    joint, cascade = (apart[line] for line in ("Joint RL (DiffusionNFT)", "Cascade RL (DiffusionNFT)"))
    values = [apart["Analytic OPD"], *joint, *cascade, apart["teacher ocr"]]
    said = "the base's {:.2f} to {} with distillation, {} and {} with joint RL and the long line, {} and {} with the cascades; the teacher is at {}"
    assert said.format(apart["base at its best guidance"].iloc[0], *(f"{value:.2f}".lstrip("0") for value in values)) in text
    lines = ("Analytic OPD", "Joint RL (DiffusionNFT)", "Cascade RL (DiffusionNFT)")
    own, at_1 = ([told(table(name).query("task == 'mean'").loc[line], "drift", signed=False) for line in lines] for name in ("diversity", "diversity-along"))
    said = "its drift is {} against {} for joint RL and {} for the cascade at each model's own guidance, and {} against {} and {} at guidance 1."
    assert said.format(*own, *at_1) in text
    further = {}
    for world, (short_ones, long_ones) in {"study-2": ("", "2-"), "study-1": ("4-", "5-")}.items():
        for name in ("diversity", "diversity-along"):
            ours, theirs = (table(f"{n}{name}").query("task == 'mean'")["drift"] for n in (short_ones, long_ones))
            further[world, name] = [bool(theirs[line] > ours["Analytic OPD"]) for line in lines[1:]]
    assert further == {("study-2", name): [True, True] for name in ("diversity", "diversity-along")} | {
        ("study-1", name): [True, False] for name in ("diversity", "diversity-along")
    }
    grid = scores[scores["line"] == "base"].groupby("world")["geneval_guidance"].agg(set)
    assert grid.to_dict() == {"study-1": {8.0}, "study-2": {16.0}, "study-3": {16.0}}
    against = table("against")
    assert set(against["verdict"]) == {"does not count against it"}
    assert f"differ a little less, {told(against.loc['Diversity'], 'study-1')}." in text
    verdicts = table("hypotheses")["verdict"]
    assert verdicts[["H1a", "H2a"]].tolist() == ["undecided"] * 2 and verdicts[["H1b", "H2b"]].tolist() == ["holds"] * 2
    assert verdicts[["H4 geneval", "H4 ocr", "H4 pickscore"]].tolist() == ["fails", "holds", "holds"]
    gain = {world: table(f"{n}scores").loc["Analytic OPD", "gain"] for world, n in zip(WORLDS, ("", "4-", "7-"))}
    assert "where by the headlines here it is {:.0%}, {:.0%} and {:.0%} in `study-2`, `study-1` and `study-3`;".format(*(gain[world] for world in WORLDS)) in text
    stage_2 = effect("study-2", forgets.format("", "ocr, trained in stage 1, by the end of stage 2"))
    assert f"which changes by {stage_2} in `study-2`." in text
    claims = pd.read_csv(STORED / "tables" / "claims.csv")
    counts = {world: claims[claims["where"].str.startswith(f"{world},")]["verdict"].value_counts() for world in WORLDS}
    told_of = [[counts[world].get(verdict, 0) for verdict in ("holds", "undecided", "does not hold")] for world in WORLDS]
    said = (
        "is split in the report's table of claims into {} comparisons of one line or task each, 12 of them with Holm's correction in the "
        "table's own families; H1a, H1b, H2a, H2b and H3 are among them. In `study-2` {} hold, {} are undecided and {} do not hold"
    )
    assert said.format(sum(told_of[0]), *told_of[0]) in text and {sum(row) for row in told_of} == {16}
    assert "in `study-1` these are {}, {} and {}, in `study-3` {}, {} and {}.".format(*told_of[1], *told_of[2]) in text
    matching = claims[claims["claim"].str.startswith("mean matching works")].iloc[0]
    assert matching["where"].startswith("study-2,") and matching["verdict"] == "does not hold"
    assert matching["quantity"] == "mean gain recovered, above 90%" and "mean matching recovers above 90%" in text


def test_the_readme_in_short_has_no_number_of_its_own() -> None:
    """Its points repeat some of those that were found, which the other tests compare with the records."""
    readme, findings = (ROOT / "README.md").read_text(), FINDINGS.read_text()
    part = readme[readme.index("What speaks against distillation, against the paper") : readme.index("A second reader of signs")]
    points = re.findall(r"^- .*(?:\n  .*)*", part, re.M)
    number = re.compile(r"(?<![\w.])[+-]?(?:\d*\.\d+|\d+%|\d+)")
    used = {value for point in points for value in number.findall(point)}
    assert len(points) == 11 and len(used) > 20
    assert used <= set(number.findall(findings))


def test_what_the_readme_says_of_leads_by_task(readme: str, means: pd.DataFrame) -> None:
    """Each task's third of the difference of the mean scores of distillation and joint RL of its budget."""
    parts = []
    for world in WORLDS:
        ours, theirs = (means.loc[(world, line, False)] for line in ("opd_analytic", "multi_reward"))
        parts += [short((ours[task] - theirs[task]) / 3, True) for task in TASKS]
    said = "in `study-2`, {} come from geneval, {} from ocr and {} from pickscore, in `study-1` {}, {} and {}, in `study-3` {}, {} and {}."
    assert said.format(*parts) in readme


def test_what_the_readme_says_of_worst_tasks(readme: str) -> None:
    lowest = {}
    for name, long, source in (("Analytic OPD", False, ("", "4-", "7-")), ("Cascade RL (DiffusionNFT) at 614,688", True, ("3-", "6-", "9-"))):
        for world, prefix in zip(WORLDS, source):
            scored = table(f"{prefix}scores")[list(TASKS)]
            own, base, teachers = (scored.loc[line] for line in (name, "base at its best guidance", "each task's own teacher"))
            lowest[world, long] = f"{min((own - base) / (teachers - base)):.0%}"
    order = [("study-2", False), ("study-1", False), ("study-2", True), ("study-1", True), ("study-3", False), ("study-3", True)]
    said = "it recovers {} of its teacher's gain in `study-2` and {} in `study-1`, the long cascade's {} and {}, in `study-3` {} and {}."
    assert said.format(*(lowest[key] for key in order)) in readme


def test_what_the_readme_says_of_diversity_and_drift_at_the_student_s_budget(readme: str, records: tuple[Evidence, Stated]) -> None:
    evidence, stated = records
    found = pools(evidence)
    effects = {}
    for measure, side in (("drift", "above"), ("diversity", "below")):
        for method in ("multi_reward", "cascade"):
            entry = {"name": measure, "claim": measure, "line": stated.against[0].line, "minus": {"method": method, "nfe": 153_600}}
            asked = Against.model_validate(entry | {"measure": measure, "is": side})
            (one,) = weigh(stated.model_copy(update={"against": (asked,)}), found)
            effects[measure, method] = one.effects
    interval = lambda effect, sign=1: "[{}, {}]".format(*(short(x, sign > 0) for x in sorted((sign * effect.low, sign * effect.high))))
    further = [effects["drift", method] for method in ("multi_reward", "cascade")]
    said = [f"{short(of['study-2'].value, True)} {interval(of['study-2'])}" for of in further]
    assert "The differences at guidance 1, {} and {}, are not told from 0, nor are those in the other worlds".format(*said) in readme
    assert all(effect.low < 0 < effect.high for of in further for effect in of.values())
    less = effects["diversity", "cascade"]
    said = [f"{short(-less[world].value)} {interval(less[world], -1)}" for world in WORLDS]
    assert f"with the cascade of its budget, by {said[0]} in `study-2` and {said[2]} in `study-3`; in `study-1` {said[1]}." in readme
    drifts, measured = {}, set()
    for run in (run for run in evidence.runs if run.spec["backbone"] == "study-2" and run.record):
        line = run.spec["method"], run.spec["budget"]["nfe"]
        rows = [row["rows"]["drift"] for row in run.record.summary["models"]["student"].values()]
        drifts.setdefault(line, []).append(np.mean([np.nanmean(values) for values in rows]))
        measured.add((len(rows), sum(np.isfinite(values).sum() for values in rows)))
    assert {images for tasks, images in measured if tasks == 3} == {50} and "measured on 50 images of a model." in readme
    assert f"has one seed at {max(drifts['opd_analytic', 153_600]):.2f};" in readme
    medians = [short(np.median(drifts[method, 153_600])) for method in ("opd_analytic", "multi_reward", "cascade")]
    assert "the medians over seeds are {}, {} and {}.".format(*medians) in readme


def test_that_long_joint_rl_s_mean_score_falls_is_not_shown(records: tuple[Evidence, Stated]) -> None:
    """From its best point to the end, by a t-test over seeds; and which images make H3's difference in study-3."""
    for run_pool in (pool for pool in pools(records[0]) if pool.whole):
        (line,) = (line for line in run_pool.lines if line.method == "multi_reward")
        found = [score_matrix(record.evaluations, run_pool.tasks) for record in line.records]
        scores_SK = np.stack([scores.mean(-1) for _, scores in found])
        best = scores_SK.mean(0).argmax()
        assert stats.ttest_1samp(scores_SK[:, -1] - scores_SK[:, best], 0).pvalue > 0.05
    (cascade,) = (line for pool in pools(records[0]) if pool.whole and pool.world.backbone == "study-3" for line in pool.lines if line.method == "cascade")
    lost = []
    for record in sorted(cascade.records, key=lambda record: record.summary["seed"]):
        at = {row["share"]: np.sum(row["rows"]["exact"]) for row in record.evaluations if row["task"] == "ocr"}
        lost.append(at[0.6667] - at[0.3333])
    assert lost == [8, 4, -13] and "images (seeds +8, +4 and -13)" in FINDINGS.read_text()


def test_what_the_readme_says_of_the_target(readme: str, records: tuple[Evidence, Stated]) -> None:
    (pool,) = [pool for pool in pools(records[0]) if pool.world.backbone == "study-2" and pool.whole]
    wanted = targets(with_teachers(line.records for line in pool.lines), pool.tasks)
    end, looks = {}, {}
    for line in pool.lines:
        last = [score_matrix(record.evaluations, pool.tasks) for record in line.records]
        looks[line.method] = {len(shares) for shares, _ in last}
        end[line.method] = sum(all(scores[-1] >= [wanted[task] for task in pool.tasks]) for _, scores in last)
    assert end == {"opd_analytic": 3, "multi_reward": 1, "cascade": 0} and looks == {"opd_analytic": {3}, "multi_reward": {6}, "cascade": {6}}
    cost = table("3-cost")
    assert cost["to_target"]["Joint RL (DiffusionNFT) at 614,400"] == pytest.approx(614_400 / 3, rel=0.01)
    assert np.isinf(cost["to_target"]["Analytic OPD"])
    assert "By its mean over seeds long joint RL is there at a third of the budget, and distillation never." in readme
    reach = cost["reaching"]
    assert (reach["Joint RL (DiffusionNFT) at 614,400"], reach["Analytic OPD"]) == (8, 3)
    assert "8 of 10 seeds of long joint RL are at 90% of the best teacher on every task at one of six recorded points, and 3 of distillation at " \
           "one of three; at the end 1 and 3 are." in readme
    assert "At the end 1 of the 10 seeds still is, and 3 of distillation's; a long line is looked at six times, distillation three times." in readme


def test_ranks_are_those_of_the_runs(readme: str, records: tuple[Evidence, Stated]) -> None:
    ranks = {(run.spec["method"], run.spec["lora"]["rank"]) for run in records[0].runs}
    assert ranks == {("opd_analytic", 64), ("multi_reward", 16), ("cascade", 16), ("single_task", 16)}
    assert "so that distillation has LoRA rank 64, and its teachers and rivals 16." in readme


def test_what_was_found_beside_the_first_page_is_what_the_records_say(scores: pd.DataFrame) -> None:
    text = " ".join(FINDINGS.read_text().split())
    decisive = scores[scores["world"] == "study-2"]
    runs = {(line, long): found.set_index("seed") for (line, long), found in decisive.groupby(["line", "long"])}
    opd, joint, cascade = runs["opd_analytic", False], runs["multi_reward", True], runs["cascade", True]
    gaps = (opd["mean"] - cascade["mean"]).to_numpy()
    assert len(gaps) == 10
    drawn = gaps[np.random.default_rng(0).integers(10, size=(100_000, 10))].mean(1)
    assert 0.005 < 2 * (drawn <= 0).mean() < 0.02 and "over the same ten differences has about .01" in text
    found = table("hypotheses").loc["H2a"]
    # Holm's correction doubles the second largest of four.
    assert f"p is {short(found['p'] / 2)} by the report's method" in text and f"; {short(found['p'])} after correction)" in text
    low = cascade["ocr"].nsmallest(2)
    assert low.index.tolist() == [3, 7] and f"(3 and 7, ocr {short(low[3])} and {short(low[7])})" in text
    others = (opd["mean"] - cascade["mean"]).drop([3, 7]).mean()
    assert f"the difference of {short(found['study-2'], True)} is {short(others, True)}." in text
    rivals = [runs[line, long] for line in ("multi_reward", "cascade") for long in (False, True)]
    for task in TASKS:
        for rival in rivals:
            assert (opd[task].mean() > rival[task].mean()) == (opd[f"{task} reward"].mean() > rival[f"{task} reward"].mean())
    gains = [short((opd[f"{task}{which}"] - joint[f"{task}{which}"]).mean(), True) for which in (" reward", "") for task in TASKS]
    assert "{} on geneval, {} on ocr and {} on pickscore by the trained rewards, {}, {} and {} by the headlines".format(*gains) in text
    rewarded = [sum(run[f"{task} reward"].mean() for task in TASKS) / 3 for run in (joint, cascade)]
    rewards, headlines = table("2-other-scores").loc["mean"].set_index("line"), table("2-scores")
    signs = [found.loc["Joint RL (DiffusionNFT)"] for found in (rewards, headlines)]
    assert [row["against"] for row in signs] == pytest.approx(
        [rewarded[0] - rewarded[1], joint["mean"].mean() - cascade["mean"].mean()], abs=1e-6
    )
    said = "in `study-2` long joint RL minus the long cascade is {} by the trained rewards and {} by the headlines, neither"
    assert said.format(*(told(row, "against") for row in signs)) in text
    assert all(row["against_low"] < 0 < row["against_high"] for row in signs)
    cost = table("cost")["weighted"]
    long = table("3-cost")["weighted"]
    # Teachers have joint RL's settings.
    paid = cost["Analytic OPD"] + 3 * cost["Joint RL (DiffusionNFT)"], *(long[line] for line in list(LINES)[1:3])
    said = "costs {:,.0f} forward passes, long joint RL {:,.0f} and the long cascade {:,.0f}"
    assert said.format(*paid) in text
    assert "a backward pass counts 1.25 forward passes" in text and "1.25 forward passes." in (STORED / "tables" / "cost.md").read_text()
    protocol = " ".join((STUDY / "PROTOCOL.md").read_text().split())
    more = [cost["Joint RL (DiffusionNFT)"] / cost["Analytic OPD"], paid[1] / paid[0], paid[2] / paid[0]]
    said = "joint RL has {:.1%} and not 12% more compute than distillation at D, and the long lines have {:.1%} and {:.1%} and not 4% more"
    assert said.format(*(value - 1 for value in more)) in protocol
    ground = pd.concat([table(f"{n}diversity").query("task == 'ocr'")["entropy.ground"] for n in ("", "2-")])
    of_lines = ground[["Analytic OPD", "Joint RL (DiffusionNFT)", "Cascade RL (DiffusionNFT)"]]
    assert len(of_lines) == 5
    said = f"from {ground['base at its best guidance'].iloc[0]:.2f} to between {of_lines.min():.2f} and {of_lines.max():.2f}."
    assert said.replace(" 0.", " .") in text
    kept = pd.concat([table(f"{n}diversity").query("task == 'geneval'")["entropy.ground"] for n in ("", "2-")])
    own, base, joints = (kept[line] for line in ("Analytic OPD", "base at its best guidance", "Joint RL (DiffusionNFT)"))
    values = own, base.iloc[0], *joints
    assert "On geneval it does not with distillation, {:.2f} after {:.2f}, where joint RL has {:.2f} and long joint RL {:.2f}.".format(*values) in text
    trained = table("3-other-scores").loc["mean"].set_index("line").loc["Joint RL (DiffusionNFT) at 614,400"]
    turned = [short(-trained[f"against{end}"], True) for end in ("", "_high", "_low")]
    assert "above long joint RL's by {} [{}, {}], not corrected".format(*turned) in text
    fell = table("diversity").query("task == 'pickscore'")
    pair = lambda line: (fell.loc[line, "entropy.ground"], fell.loc[line, "entropy.placement"])
    (ground, place), (own, placed), (taught, other) = map(pair, ("base at its best guidance", "Analytic OPD", "teacher pickscore"))
    said = f"from the base's {ground:.2f} bits to {own:.2f}, that of the placement from {place:.2f} to {placed:.2f}. Its teacher is at {taught:.2f} and {other:.2f}."
    assert said.replace(" 0.", " .") in text
    fell = table("diversity-along").query("task == 'pickscore'")["entropy.ground"]
    lines = ("base", "Analytic OPD", "Joint RL (DiffusionNFT)", "Cascade RL (DiffusionNFT)", "teacher pickscore")
    said = "the ground falls from {:.2f} to {:.2f} with distillation, to {:.2f} with joint RL and {:.2f} with the cascade; the teacher is at {:.2f}"
    assert said.format(*(fell[line] for line in lines)) in text


def test_rewards_of_the_study_s_readme_are_those_of_the_report_s_tables(scores: pd.DataFrame) -> None:
    """Which the scores of the runs, read without the report, agree with."""
    decisive = scores[scores["world"] == "study-2"]
    for name, long in (("other-scores", False), ("3-other-scores", True)):
        found = pd.read_csv(STORED / "tables" / f"{name}.csv")
        own = decisive[(decisive["long"] == long) & (decisive["line"] == "multi_reward")]
        stored = found[found["line"].str.startswith("Joint RL") & (found["metric"] == "reward")].set_index("task")["score"]
        for task in TASKS:
            assert stored[task] == pytest.approx(own[f"{task} reward"].mean())
        assert stored["mean"] == pytest.approx(sum(own[f"{task} reward"].mean() for task in TASKS) / 3)


def test_minutes_of_the_run_that_is_to_be_repeated_are_those_of_its_record() -> None:
    text = " ".join((STUDY / "README.md").read_text().split())
    runs = summaries([STUDY / "part1" / "study-2-s0.tar.xz"])
    (seconds,) = (run["cost"]["seconds"] for run in runs if run["method"] == "opd_analytic")
    whole, references = sum(seconds.values()) / 60, seconds["references"] / 60
    assert f"its recorded run took {whole:.1f}, of which {references:.1f} did." in text


def test_seconds_of_the_study_s_readme_are_those_of_the_records() -> None:
    """With the teachers', which the table of costs does not have."""
    text = " ".join(f"{(STUDY / 'README.md').read_text()} {FINDINGS.read_text()}".split())
    runs = {world: list(summaries((STUDY / "part1").glob(f"{world}-*.tar.xz"))) for world in WORLDS}
    archives = (STUDY / "part2").glob("cell-*.tar.xz"), (STUDY / "tuning").glob("*.tar.xz")
    every = itertools.chain(*runs.values()), *map(summaries, archives)
    hours = [sum(sum(run["cost"]["seconds"].values()) for run in some) / 3600 for some in every]
    assert "of part 1 took {:.1f} hours of a core and those of part 2 {:.1f}, many of them with more processes than cores; those of the studies " \
           "below, which tune, took {:.1f}.".format(*hours) in text
    told_of = {}
    for world, scored in itertools.product(WORLDS, (False, True)):
        spent: dict[tuple[str, float], list[float]] = {}
        for run in runs[world]:
            line, clock = (run["method"], round(run["cost"]["evaluations"]["training"], -4)), run["cost"]["seconds"]
            spent.setdefault(line, []).append(clock["training"] + (clock.get("scoring", 0) if scored else 0))
        mean = {line: sum(seconds) / len(seconds) for line, seconds in spent.items()}
        taught = mean["opd_analytic", 150_000] + 3 * mean["single_task", 150_000]
        told_of[world, scored] = [f"{value:.0f}" for value in (taught, mean["multi_reward", 610_000], mean["cascade", 610_000])]
    said = (
        "take {} seconds of training in `study-2`, long joint RL {} and the long cascade {}; in `study-1` {}, {} and {}, in `study-3` {}, {} "
        "and {}, so that in `study-3` the long cascade,"
    )
    assert said.format(*told_of["study-2", False], *told_of["study-1", False], *told_of["study-3", False]) in text
    assert "With the scoring of images, which RL and teachers need, they are {}, {} and {} in `study-2`.".format(*told_of["study-2", True]) in text
    first = [[float(value) for value in told_of[world, scored]] for world, scored in told_of]
    assert [min(row) == row[0] for row in first] == [True, True, True, True, False, False]
