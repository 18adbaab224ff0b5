"""Part 2 of the study: every cell's commands are valid, its outcomes are read as what they are, and its model finds effects."""

import copy
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from bench.config.resolve import resolve
from bench.errors import UsageError
from report.style import drawing
from sweeps.study import read_study
from tests.archives import unpack
from tests.commands import bench
from tests.study_scripts import STUDY, scripts, short

FOLDER = STUDY / "part2"
cell, central, design, model, beside, outcomes, pack, _, page, picture, studies = scripts(
    FOLDER, "cell", "central", "design", "model", "beside", "outcomes", "pack", "after", "page", "picture", "studies"
)
RULE = {"params.combine": "pcgrad"}


def settings(line: str, rank: int, share: float) -> dict:
    """Settings whose learning rate tells what they were chosen for."""
    found = {"lora.rank": rank, "lora.alpha": 2 * rank, "optimizer.lr": rank * share * 1e-5}
    if line == "opd":
        return found
    return found | {"params.engine": "nft", "params.groups": 3} | (RULE if line == "rule" else {})


LINES = {0.25: ("joint", "rule", "opd"), 1.0: ("joint", "rule", "opd"), 5.0: ("joint",)}
TUNED = {
    rank: {share: {line: settings(line, rank, share) for line in lines} for share, lines in LINES.items()}
    for rank in (4, 64)
}
PAIRS = {"colour": ["taste_1", "taste_2"], "place": ["taste_3", "taste_4"], "light": ["taste_5", "taste_6"]}


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch) -> None:
    """Settings of our own, so that the tests do not depend on what the tuning finds."""
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(TUNED))
    monkeypatch.setattr(cell, "TUNED", tmp_path / "tuned.yaml")


def spec_of(words: list[str]):
    """What a `bench run` command resolves to."""
    given = dict(zip(words[2::2], words[3::2]))
    overrides = [value for word, value in pairwise(words) if word == "--set"]
    names, seed = given["--tasks"].split(","), int(given["--seeds"])
    return resolve(given["--method"], names, seed, given["--backbone"], overrides=overrides)


@pytest.mark.parametrize("number", range(36))
def test_every_cell_s_commands_are_what_its_row_says(number: int) -> None:
    row = cell.cells()[number]
    assert int(row["cell"]) == number
    seed = 2 * number + 1
    assert seed in cell.seeds(row)
    made = cell.lines(row, seed, Path("results/x"), "TEACHERS")
    shared = ["shared"] if row["overlap"] == "all" else []
    assert list(made) == ["joint_long", "rule", "joint", "opd", "soup", *shared] and set(made) == outcomes.lines_of(row)
    tasks = [task for plane in row["planes"].split("+") for task in PAIRS[plane]]
    assert len(tasks) == int(row["tasks"])
    specs = {line: spec_of(words) for line, words in made.items()}
    for line, spec in specs.items():
        assert (spec.seed, spec.backbone, list(spec.tasks)) == (seed, f"study-{row['world']}", tasks)
        assert spec.evaluation.split == "test" and not spec.evaluation.guidance_grid
        assert spec.evaluation.scale == spec.sampler.guidance == 1
        sources = [spec.scorers[task] for task in spec.tasks]
        assert {source["overlap"] for source in sources} == {row["overlap"]}
        assert {source["among"] for source in sources} == {"6"}
        assert [source.get("angle") for source in sources] == [None, row["angle"]] * (int(row["tasks"]) // 2)
        if line != "soup":
            assert spec.lora.rank == int(row["rank"])
        if line in ("opd", "soup"):
            assert spec.teachers == {task: f"TEACHERS/{task}" for task in spec.tasks}
        if spec.method == "multi_reward":
            # As many images per update as with four tasks.
            assert spec.params["groups"] * len(tasks) == 12
        if line != "soup":
            # Chosen for the budget that is nearest as a ratio: a quarter, all, or that of the central long line.
            spent, long = spec.budget.nfe / 73_728, line == "joint_long"
            share = 0.25 if spent <= 0.5 else 5 if long and spent > 5**0.5 else 1
            assert spec.optimizer.lr == pytest.approx(int(row["rank"]) * share * 1e-5)
    nfe = {line: spec.budget.nfe for line, spec in specs.items() if line != "soup"}
    words = cell.teach(row, seed, Path("results/x"))
    taught = words[words.index("--set") + 1]
    share = float(row["teachers"])
    assert {nfe.pop(line) for line in ("opd", "joint", "rule", *shared)} == {73_728 * float(row["budget"])}
    assert taught == f"budget.nfe={specs['opd'].budget.nfe * share:.0f}"
    assert nfe == {"joint_long": specs["opd"].budget.nfe * (1 + int(row["tasks"]) * share)}
    assert specs["rule"].params["combine"] == "pcgrad"
    for line in shared:
        assert specs[line].rewards == {task: dict.fromkeys(tasks, 1.0) for task in tasks}
    # Records say which line they are.
    told = {line: outcomes.line_of(Recorded(spec), row) for line, spec in specs.items()}
    assert told == {line: line for line in specs}


class Recorded:
    """What outcomes.py reads of a run: its settings as they are recorded."""

    def __init__(self, spec):
        self.spec = spec.record()


def test_planes_do_not_go_with_the_number_of_tasks() -> None:
    rows = cell.cells()
    for tasks, least in ((2, 3), (4, 4)):
        planes = [row["planes"] for row in rows if int(row["tasks"]) == tasks]
        assert len(set(planes)) == 3 and min(map(planes.count, planes)) >= least
    terms = model.terms(model.coded().assign(response=0.0))
    assert np.linalg.matrix_rank(terms) == terms.shape[1] == 17
    assert np.linalg.cond(terms) < 30


def test_no_two_cells_share_a_seed() -> None:
    """Runs of one seed begin with the same adapter, prompts and noise, so that cells would not be independent."""
    seeds = [seed for row in cell.cells() for seed in cell.seeds(row)]
    assert len(set(seeds)) == len(seeds) == 72 and max(seeds) < 100


def test_groups_that_cannot_be_shared_out_are_refused(tmp_path: Path) -> None:
    """Otherwise the images per update would go with the number of tasks."""
    uneven = copy.deepcopy(TUNED)
    for share in LINES:
        uneven[64][share]["joint"]["params.groups"] = 2
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(uneven))
    row = next(row for row in cell.cells() if row["tasks"] == "6" and row["rank"] == "64")
    with pytest.raises(ValueError, match="2 groups for each of 4 tasks"):
        cell.lines(row, 0, Path("results/x"), "TEACHERS")


def test_a_dry_run_prints_the_commands(capsys, monkeypatch) -> None:
    def printed(*words: str) -> list[list[str]]:
        monkeypatch.setattr(sys, "argv", ["cell.py", "3", "--dry-run", *words])
        assert cell.main() == 0
        return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]

    both = printed()
    assert [words[:2] for words in both] == [["bench", "teach"], *[["bench", "run"]] * 5] * 2
    assert {words[words.index("--results") + 1] for words in both} == {"results/study/part2/cell-03"}
    assert [words[words.index("--seeds") + 1] for words in both] == ["6"] * 6 + ["7"] * 6
    assert printed("--seed", "7") == both[6:]
    with pytest.raises(SystemExit):
        printed("--seed", "1")
    assert "cell 3 has the seeds 6 and 7, not 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words", "code", "said"),
    [
        ("part2/cell.py", ["36"], 2, "there is no cell 36: they have the numbers 0 to 35"),
        ("part2/cell.py", ["-1"], 2, "there is no cell -1"),
        ("part2/cell.py", ["3", "--dry-run"], 3, "tuned.yaml is missing: part2/studies.py writes it"),
        ("part2/outcomes.py", [], 2, "root"),
        ("part2/outcomes.py", ["nowhere"], 3, "nowhere is not a folder"),
        ("part2/pack.py", ["3", "."], 2, "cell 3, seed 6: no base, joint"),
        ("part2/pack.py", ["99", "."], 2, "there is no cell 99"),
        ("part2/page.py", [], 3, "outcomes.csv is missing: part2/outcomes.py writes it"),
        ("part2/picture.py", [], 3, "outcomes.csv is missing: part2/outcomes.py writes it"),
        ("read_signs.py", ["study-2"], 2, "seeds"),
        ("read_signs.py", ["study-2", "0"], 2, "results/study/study-2 is not a folder"),
        ("read_signs.py", ["empty", "0"], 3, "no finished run of these seeds is in results/study/empty"),
    ],
)
def test_a_script_says_what_is_missing_in_a_line(tmp_path: Path, script: str, words: list[str], code: int, said: str) -> None:
    # A copy without what the tuning and the cells have left.
    shutil.copytree(STUDY, tmp_path / "study", ignore=lambda *_: ["tuning", "part1", "tuned.yaml", "outcomes.csv"])
    (tmp_path / "results" / "study" / "empty").mkdir(parents=True)
    command = [sys.executable, str(tmp_path / "study" / script), *words]
    environment = os.environ | {"PYTHONPATH": str(STUDY.parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_lines_without_teachers_are_run_where_a_teacher_fails(tmp_path: Path, monkeypatch, capsys) -> None:
    """And nothing goes on after an interruption, or after words that are refused."""
    asked = []

    def run(words: list[str], code: int):
        asked.append(words)
        return subprocess.CompletedProcess(words, code if words[1] == "teach" else 0)

    for code, lines in ((1, 3), (130, 0), (2, 0)):
        asked.clear()
        monkeypatch.setattr(cell.subprocess, "run", lambda words, code=code, **_: run(words, code))
        monkeypatch.setattr(sys, "argv", ["cell.py", "3", "--seed", "6", "--results", str(tmp_path)])
        assert cell.main() == code
        assert [words[3] for words in asked[1:]] == ["multi_reward"] * lines
    assert "opd and soup are left out" in capsys.readouterr().err


def test_a_cell_with_runs_from_an_archive_is_not_called_finished(tmp_path: Path, monkeypatch, capfd) -> None:
    run = tmp_path / "cell-03" / "opd_analytic-x-s6"
    run.mkdir(parents=True)
    for name in ("spec.json", "summary.json"):
        (run / name).touch()
    for words, code in ((["--dry-run"], 0), ([], 2)):
        monkeypatch.setattr(sys, "argv", ["cell.py", "3", "--seed", "6", "--results", str(tmp_path), *words])
        assert cell.main() == code
    assert f"{run} is from an archive, without its weights" in capfd.readouterr().err


def test_a_cell_s_teachers_can_be_taught(tmp_path: Path) -> None:
    words = cell.teach(cell.cells()[3], 0, Path("results/x"))
    done = bench([*words[1:], "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    # Budgets are whole updates of a teacher, so that long joint RL is given what teachers cost.
    assert f"training NFE: {6 * 3 * 1_536:,} in total" in done.stdout


def test_the_studies_have_the_teachers_that_the_central_cell_trains(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["central.py", "--dry-run"])
    assert central.main() == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    for words, budget, nfe in zip(commands, ("quarter", "full"), (18_432, 73_728), strict=True):
        done = bench([*words[1:], "--dry-run"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"training NFE: {4 * nfe:,} in total" in done.stdout
        assert central.TEACHERS[budget] in done.stdout
        settings = studies.study("opd", 64, budget)["settings"]
        for number, angle in ((1, None), (2, "90"), (3, None), (4, "90")):
            folder = f"results/study/part2/central/{central.TEACHERS[budget]}/taste_{number}"
            assert settings[f"teachers.taste_{number}"] == folder
            turned = {"angle": angle} if angle else {}
            assert settings[f"scorers.taste_{number}"] == {"overlap": "half", "among": "6"} | turned


@pytest.mark.parametrize(("line", "rank", "share"), studies.STUDIES, ids=lambda value: str(value))
def test_a_study_s_file_is_what_its_script_writes(line: str, rank: int, share: str) -> None:
    path, content = studies.SWEEPS / f"{studies.named(line, rank, share)}.yaml", studies.study(line, rank, share)
    assert path.is_file() == (content is not None)
    if content:
        assert path.read_text() == studies.written(content)
        study = read_study(path)
        first = study.run(dict(study.enqueue[0]), 100)
        assert (first.lora.rank, first.lora.alpha, first.evaluation.split) == (rank, 2 * rank, "validation")
        assert first.budget.nfe == 73_728 * {"quarter": 0.25, "full": 1, "long": 5}[share]


def packed(folder: Path, name: str, found: dict) -> None:
    """The archive of a study that ended with this."""
    with tarfile.open(folder / f"{name}.tar.xz", "w:xz") as archive:
        text = json.dumps(found).encode()
        member = tarfile.TarInfo(f"study-{name}/summary.json")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))


def test_later_studies_and_the_cells_start_from_what_was_chosen(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(studies, "TUNING", tmp_path)
    assert studies.study("rule", 4, "full") is None and studies.study("joint", 4, "long") is None
    assert studies.tuned() is None
    trials = [
        {"settings": {"optimizer.lr": lr, "optimizer.lr_end": 0.1, "sampler.steps": 5, "params.nft.kl": 0.2, "params.group_size": 4}}
        for lr in (3e-3, 1e-3)
    ]
    for line, rank, share in studies.STUDIES:
        best = {"params.combine": "mgda", "optimizer.lr": 1e-3} if line == "rule" else {"optimizer.lr": 2e-3}
        best = trials[0]["settings"] if (line, share) == ("joint", "full") else best
        packed(tmp_path, studies.named(line, rank, share), {"chosen": {"settings": best}, "confirmed": trials})
    rule = studies.study("rule", 4, "full")
    assert [tried["params.combine"] for tried in rule["enqueue"]] == rule["space"]["params.combine"]["choices"]
    assert len(rule["enqueue"]) == 7 and {tried["optimizer.lr"] for tried in rule["enqueue"]} == {3e-3}
    assert rule["space"]["optimizer.lr"] == {"low": 1e-3, "high": pytest.approx(9e-3), "log": True}
    assert (rule["settings"]["params.group_size"], rule["settings"]["params.nft.kl"]) == (4, 0.2)
    long = studies.study("joint", 64, "long")
    assert [tried["optimizer.lr"] for tried in long["enqueue"]] == [3e-3, 1e-3, pytest.approx(1e-3), 3e-3]
    assert [tried["optimizer.lr_end"] for tried in long["enqueue"]] == [0.1, 0.1, 0.1, 1.0]
    assert long["trials"] == 4 and long["budget"] == 5 * 73_728 and "confirm" not in long
    for content in (rule, long):
        path = tmp_path / "study.yaml"
        path.write_text(studies.written(content))
        study = read_study(path)
        for tried in study.enqueue:
            assert study.run(dict(tried), 100).params["group_size"] == 4
    found = studies.tuned()
    assert found[4][1.0]["rule"] == {
        "lora.rank": 4, "lora.alpha": 8, "params.engine": "nft", "params.groups": 3, "params.combine": "mgda",
        "optimizer.lr": 1e-3, "optimizer.lr_end": 0.1, "sampler.steps": 5, "params.nft.kl": 0.2, "params.group_size": 4,
    }  # fmt: skip
    assert found[64][5.0]["joint"]["optimizer.lr"] == 2e-3 and found[64][0.25]["opd"]["lora.alpha"] == 128
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(found))
    for row in cell.cells():
        for words in cell.lines(row, 0, Path("results/x"), "TEACHERS").values():
            spec_of(words)


def test_the_cells_settings_are_what_the_studies_chose() -> None:
    path, found = FOLDER / "tuned.yaml", studies.tuned()
    assert path.is_file() == (found is not None)
    if found:
        assert yaml.safe_load(path.read_text()) == found


class Noise:
    """Made-up outcomes with known effects, all in the scores of distillation."""

    EFFECTS: ClassVar = {
        "overlap": -0.05, "conflict": -0.01, "tasks": 0.01, "rank": -0.008, "teachers": 0.01, "budget": 0.005,
        "colour": 0.02, "place": -0.01, "world 1": 0.01, "world 2": 0.0,
    }  # fmt: skip
    TRUTH = (0.03 - 0.005, 0.01, 0.008, 0.03 - 0.05 - 0.01 - 0.04, 0.01)

    def __init__(self, seed: int, noise: float):
        rng, cells = np.random.default_rng(seed), model.coded()
        worth = 0.03 - 0.04 * cells["overlap"] * cells["conflict"]
        worth += sum(effect * cells[name] for name, effect in self.EFFECTS.items())
        worth += rng.normal(0, noise, len(cells))
        rows = []
        for nth in range(2):
            for index, value in enumerate(worth + rng.normal(0, noise, len(cells))):
                seed = 2 * index + nth
                rows += [(index, seed, "opd", 0.5 + value), (index, seed, "joint_long", 0.5), (index, seed, "joint", 0.5)]
        self.outcomes = pd.DataFrame(rows, columns=["cell", "seed", "line", "pair"])


def test_the_model_finds_effects_that_are_there() -> None:
    found = model.tests(Noise(0, 1e-5).outcomes)
    np.testing.assert_allclose(found["value"], Noise.TRUTH, atol=1e-4)
    assert set(found["verdict"]) == {"holds"}
    opposite = Noise(0, 1e-5).outcomes.assign(pair=lambda outcomes: 1 - outcomes["pair"])
    assert set(model.tests(opposite)["verdict"]) == {"fails"}


def test_the_model_is_the_mixed_model() -> None:
    """With as many seeds in every cell, least squares on cells' means has the mixed model's estimates and errors."""
    made = Noise(3, 0.02).outcomes
    made["pair"] *= 100  # statsmodels warns of variances below .01
    wide = made.pivot(index=["cell", "seed"], columns="line", values="pair")
    rows = (wide["opd"] - wide["joint"]).rename("response").reset_index().merge(model.coded(), on="cell")
    mixed = MixedLM(rows["response"], model.terms(rows), groups=rows["cell"]).fit(reml=True)
    means = model.fit(model.responses(made, "joint"))
    np.testing.assert_allclose(means.params, mixed.fe_params, atol=1e-6)
    np.testing.assert_allclose(means.bse, mixed.bse_fe, rtol=1e-4)


def test_the_model_s_intervals_cover_the_truth() -> None:
    covered = []
    for seed in range(40):
        found = model.tests(Noise(seed, 0.01).outcomes)
        covered.append((found["low"] <= Noise.TRUTH) & (found["high"] >= Noise.TRUTH))
    assert 0.9 <= np.mean(covered) <= 0.99  # 200 intervals of 95%; .9 is more than three standard errors below


def test_where_nothing_is_nothing_is_found() -> None:
    false = 0
    for seed in range(40):
        rng, nothing = np.random.default_rng(seed), Noise(0, 0.0).outcomes
        nothing["pair"] = rng.normal(0, 0.01, len(nothing))
        false += set(model.tests(nothing)["verdict"]) != {"undecided"}
    assert false <= 6  # of a family-wise rate of 5%


def every_outcome() -> pd.DataFrame:
    """Distillation has .1 to .3 more of everything than other lines, and gains .05 and 3/4 of its teachers' gain."""
    rows, rng = [], np.random.default_rng(0)
    for row in cell.cells():
        # In the corner the teachers' gain says nothing.
        cornered = row["overlap"] == "all" and row["angle"] == "180"
        for seed in cell.seeds(row):
            gain = rng.uniform(0.2, 0.4)
            opd = 0.55 + (0 if cornered else 0.75 * gain)
            values = {"base": 0.5, "teachers": 0.5 + gain, "opd": opd, "joint": opd - 0.2, "joint_long": opd - 0.1}
            values |= {"rule": opd - 0.1, "soup": opd - 0.2} | ({"shared": opd - 0.3} if row["overlap"] == "all" else {})
            nfe, long = cell.student_nfe(row), cell.long_nfe(row)
            spent = {"opd": nfe, "joint": nfe, "joint_long": long, "rule": 7, "teachers": long - nfe}
            rows += [(int(row["cell"]), seed, line, spent.get(line, 0), *[value] * 6) for line, value in values.items()]
    return pd.DataFrame(rows, columns=outcomes.COLUMNS)


def test_what_is_reported_beside_the_verdicts() -> None:
    found = beside.beside(every_outcome()).set_index(["quantity", "response"])["value"]
    minus_base = "distillation minus the base"
    assert found["slope on the teachers' gain, cells outside the corner", minus_base] == pytest.approx(0.75)
    assert found["gain without a gain of the teachers, cells outside the corner", minus_base] == pytest.approx(0.05)
    for value in ("extremity", "diversity", "drift"):
        assert found[f"opposed rewards on the same prompts, {value}", "teachers not counted"] == pytest.approx(0.2)
    for value in ("pair", "mean"):
        assert found[f"at a right angle on the same prompts, {value}", "teachers counted"] == pytest.approx(0.1)
    assert found["no overlap, pair, with products of the budget", "teachers counted"] == pytest.approx(0.1)
    assert found["mean over all cells, diversity", "teachers counted"] == pytest.approx(0.1)
    assert found["mean over 36 cells, pair", "soup in the place of joint"] == pytest.approx(0.2)
    assert found["no overlap, pair", "soup in the place of joint"] == pytest.approx(0.2)
    count = sum(row["overlap"] == "all" for row in cell.cells())
    assert found[f"mean over {count} cells, pair", "shared in the place of joint"] == pytest.approx(0.3)
    assert found["no overlap, lowest", "teachers counted"] == pytest.approx(0.1)
    # What is tested is not repeated.
    assert not any((f"{one.contrast}, pair", one.response) in found.index for one in model.statements())
    assert ("no overlap, pair", "teachers not counted") in found.index
    own = "opposed rewards on the same prompts, mean of its own cells"
    assert found[f"{own}, mean", "teachers counted"] == pytest.approx(0.1)
    assert found[f"{own}, extremity", "of opd itself"] == pytest.approx(0.55)
    assert found[f"{own}, extremity", "of joint_long itself"] == pytest.approx(0.45)


@pytest.mark.parametrize(("changed", "said"), [
    ({"diversity": -1}, ["less diversity"]), ({"drift": 1}, ["more drift"]), ({"diversity": 1, "drift": -1}, []),
    ({"diversity": -1, "drift": 1}, ["less diversity", "more drift"]),
])  # fmt: skip
def test_less_diversity_and_more_drift_are_the_price_of_a_win(changed: dict[str, int], said: list[str]) -> None:
    made = every_outcome()
    # Differences that are above 0 in every other cell, and below in the others.
    noise = 0.01 * (-1.0) ** made["cell"] * (made["line"] == "opd")
    made["diversity"] = made["drift"] = 1 + noise
    assert beside.price(made) == []
    # Against the long line, whatever the others are.
    for value, sign in changed.items():
        made.loc[made["line"] == "opd", value] += 0.1 * sign
    found = beside.price(made)
    assert [text.split(" than")[0] for text in found] == said
    text = page.page(made)
    for price in found:
        assert price in text
    verdicts = text.split("## Beside")[0]
    # 1a holds; the others' contrasts are 0, or not a win.
    assert verdicts.count("| holds, at the price above |") == bool(said) and verdicts.count("| holds |") == (not said)
    assert ("neither less diversity nor more drift is shown" in text) == (not said)


def test_the_page_has_the_tests_and_what_is_beside_and_names_the_cells_that_deviate() -> None:
    made = every_outcome()
    # Lines other than distillation, so that its own values stay what the slope is about.
    noise = pd.Series(np.random.default_rng(1).normal(0, 0.01, 36))
    noise[5] += 0.3
    made.loc[made["line"] == "joint", "pair"] -= made["cell"].map(noise)
    table, cells = model.tests(made), page.every_cell(made)
    text = page.page(made)
    for row, verdict in zip(table.itertuples(), table["verdict"]):
        assert f"| {row.contrast} | {row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}] |" in text
        assert f" | {verdict}" in text
    assert f"Statement 1 as a whole: {model.first_statement(table)}." in text
    assert "| mean over 36 cells, pair | soup in the place of joint | +0.200" in text
    assert "; teachers not counted: 5. NFE" in text
    (row,) = (row for row in cells.rows if row["cell"] == 5)
    assert row["teachers not counted"] == pytest.approx(0.2 + noise[5]) and 0.1 < row["teachers not counted left"] < 0.3
    long = cell.long_nfe(cell.numbered(5))
    assert (row["nfe opd"], row["nfe joint_long"], row["nfe rule"], row["nfe teachers"]) == (73_728, long, 7, long - 73_728)
    assert len(cells.rows) == 36


def test_the_page_names_the_lines_that_failed(monkeypatch) -> None:
    assert "failed" not in page.page(every_outcome())
    monkeypatch.setattr(page, "failures", lambda: [(4, 8, "opd"), (4, 8, "soup")])
    assert "no NFE: opd of cell 4, seed 8, soup of cell 4, seed 8." in page.page(every_outcome())


def test_the_stored_page_follows_from_the_outcomes() -> None:
    path = FOLDER / "results.md"
    try:
        found = page.page(model.complete())
    except UsageError:
        assert not path.exists() and not (FOLDER / "phase.png").exists()
    else:
        assert path.read_text() == found and (FOLDER / "phase.png").is_file()


def test_products_of_the_budget_are_told_from_what_they_bias() -> None:
    """An effect of the teachers that is larger with a larger budget: the middle budget's is found."""
    cells = model.coded()
    data = cells.assign(response=0.1 * cells["teachers"] * (1 + cells["budget"]))
    three = model.statements()[-1]
    assert model.estimates(data, [three.weights])["value"][0] != pytest.approx(0.1, abs=1e-3)
    for further in beside.SENSITIVITY.values():
        terms = model.terms(data, further)
        assert np.linalg.matrix_rank(terms) == terms.shape[1]
    further = beside.SENSITIVITY["with products of the budget"]
    weights = model.statements(further)[-1].weights
    assert model.estimates(data, [weights], further)["value"][0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("more", "place", "response", "truth"),
    [
        ("conflict x rank", 2, lambda at: 0.1 * (at["conflict"] - 0.3) * at["rank"], -0.02),
        ("tasks x teachers", 1, lambda at: 0.1 * at["tasks"] * (at["teachers"] - 0.4), -0.04),
        ("teachers x teachers", 3, lambda at: 0.1 * at["teachers"] ** 2, 0.0),
        ("teachers x teachers", 4, lambda at: 0.1 * (at["teachers"] - 0.2) ** 2, -0.04),
        ("overlap x conflict x conflict", 0, lambda at: 0.1 * at["overlap"] * at["conflict"] ** 2, 0.0),
        ("overlap x conflict x conflict", 3, lambda at: 0.1 * at["overlap"] * at["conflict"] ** 2, 0.1),
    ],
)
def test_a_product_that_the_model_leaves_out_biases_no_contrast_beside_it(more, place, response, truth) -> None:
    """Effects of that kind alone, by hand at the statement's point."""
    cells = model.coded()
    data = cells.assign(response=response(cells))
    without, further = model.statements()[place], beside.SENSITIVITY[f"with {more}"]
    assert abs(model.estimates(data, [without.weights])["value"][0] - truth) > 1e-3
    assert model.estimates(data, [model.statements(further)[place].weights], further)["value"][0] == pytest.approx(truth)


def test_errors_of_cells_that_differ_in_variance() -> None:
    """HC3 (MacKinnon and White, Journal of Econometrics 29, 1985): squared residuals over (1 - leverage) squared."""
    cells = model.coded()
    noise = np.random.default_rng(0).normal(size=len(cells)) * (1 + 5 * (cells["budget"] > 0))
    data = cells.assign(response=noise)
    x, weights = model.terms(data).to_numpy(), model.statements()[0].weights
    inverse = np.linalg.inv(x.T @ x)
    left = noise - x @ (inverse @ x.T @ noise)
    meat = x.T @ (x * ((left / (1 - np.einsum("ij,jk,ik->i", x, inverse, x))) ** 2).to_numpy()[:, None])
    error = np.sqrt(weights @ inverse @ meat @ inverse @ weights)
    found = model.estimates(data, [weights], errors="HC3").iloc[0]
    assert (found["high"] - found["low"]) / 2 == pytest.approx(error * stats.t.ppf(0.975, 19))
    assert found["value"] == pytest.approx(model.estimates(data, [weights])["value"][0])


def test_statement_1_is_its_three_contrasts() -> None:
    table = model.tests(Noise(0, 1e-5).outcomes)
    assert model.first_statement(table) == "holds"
    for verdict, whole in (("undecided", "undecided"), ("fails", "fails")):
        assert model.first_statement(table.assign(verdict=table["verdict"].where(table.index != 1, verdict))) == whole
    assert model.first_statement(table.assign(verdict=table["verdict"].where(table.index != 4, "fails"))) == "holds"


def test_nothing_is_printed_before_every_seed_has_finished(tmp_path: Path) -> None:
    made = Noise(0, 0.01).outcomes
    made.to_csv(tmp_path / "outcomes.csv")
    assert len(model.complete(tmp_path / "outcomes.csv")) == len(made)
    made[made["seed"] != 11].to_csv(tmp_path / "outcomes.csv")
    with pytest.raises(UsageError, match="71 of 72 pairs of cell and seed"):
        model.complete(tmp_path / "outcomes.csv")


def test_a_corner_whose_cells_disagree_is_undecided(monkeypatch) -> None:
    """The prediction there borrows from other cells, so that its own have a veto."""
    made, cells = Noise(0, 1e-5), model.coded()
    there = (cells["overlap"] == 1) & (cells["conflict"] > 0.9)
    assert there.sum() == 4
    data = model.responses(made.outcomes, "joint")
    assert model.corner(data) == pytest.approx(data.loc[there, "response"].mean())
    monkeypatch.setattr(model, "corner", lambda _: 0.001)
    assert model.tests(made.outcomes)["verdict"].tolist() == ["holds", "holds", "holds", "undecided", "holds"]


def test_nothing_is_computed_from_half_a_cell() -> None:
    made = Noise(0, 0.01).outcomes
    with pytest.raises(ValueError, match="number of seeds"):
        model.responses(made.drop(made.index[(made["cell"] == 5) & (made["seed"] == 11)]), "joint")
    with pytest.raises(ValueError, match="is missing"):
        model.responses(made.drop(made.index[(made["cell"] == 5) & (made["line"] == "joint")][:1]), "joint")


class Run:
    """A run's record, and the scores that it gives (value of the first task of a pair, and .1 more of the second)."""

    def __init__(self, method: str, nfe: int, low: float, seed: int = 0, **settings):
        params = {"combine": settings.pop("combine")} if "combine" in settings else {}
        self.spec = {"method": method, "seed": seed, "params": params, "budget": {"nfe": nfe}} | settings
        taught = {task: {"evaluations": 100.0} for task in cell.tasks(ROW)} if method in ("opd_analytic", "merge") else {}
        self.summary = {"cost": {"evaluations": {"training": nfe}}, "models": models(low), "teachers": taught}
        self.folder = Path(f"{method}-x-s{seed}")
        self.low = low


def models(low: float) -> dict:
    """Two images of a task, as far apart as is said of the model."""
    levels = {"student": low, "base": 0.2} | {f"teacher {task}": 0.9 for task in cell.tasks(ROW)}
    rows = {name: {"headline": "taste", "rows": {"taste": [level, 1.0], "reward": [5.0, 5.0]}} for name, level in levels.items()}
    return {name: dict.fromkeys(cell.tasks(ROW), row) for name, row in rows.items()}


ROW = cell.cells()[7]
SEEDS = cell.seeds(ROW)


def scores_of(runs: list[Run]) -> pd.DataFrame:
    made = [("student", runs[0].low), ("base", 0.2), *(("teacher " + task, 0.9) for task in cell.tasks(ROW))]
    rows = []
    for name, low in made:
        for nth, task in enumerate(cell.tasks(ROW)):
            rows += [(name, task, "taste", True, low + 0.1 * nth), (name, task, "reward", False, 5.0)]
            rows += [(name, task, "drift", False, 0.01), (name, task, "diversity@x", False, 0.02)]
    return pd.DataFrame(rows, columns=["model", "task", "metric", "headline", "value"])


@pytest.fixture
def made(tmp_path: Path, monkeypatch) -> list[Run]:
    """The runs of cell 7."""
    short, long = cell.student_nfe(ROW), cell.long_nfe(ROW)
    runs = [Run("single_task", 10, 0.9, SEEDS[0])]
    for seed in SEEDS:
        runs += [
            Run("opd_analytic", short, 0.7, seed), Run("merge", 0, 0.4, seed), Run("multi_reward", short, 0.6, seed),
            Run("multi_reward", long, 0.8, seed), Run("multi_reward", short, 0.5, seed, combine="pcgrad"),
        ]  # fmt: skip
        if ROW["overlap"] == "all":
            runs.append(Run("multi_reward", short, 0.3, seed, rewards={"taste_1": {}}))
    monkeypatch.setattr(outcomes, "results", lambda folder: runs)
    (tmp_path / "cell-07").mkdir()
    monkeypatch.setattr(outcomes, "scores", scores_of)
    return runs


def test_outcomes_tell_lines_apart(made: list[Run], tmp_path: Path) -> None:
    table, lacking = outcomes.outcomes(tmp_path)
    assert len(lacking) == 70 and not [text for text in lacking if text.startswith("cell 7,")]
    assert set(table["cell"]) == {7} and table.groupby("seed").size().tolist() == [len(table) // 2] * 2
    found = table[table["seed"] == SEEDS[1]].set_index("line")
    lowest = {"opd": 0.7, "soup": 0.4, "joint": 0.6, "joint_long": 0.8, "rule": 0.5, "base": 0.2, "teachers": 0.9}
    lowest |= {"shared": 0.3} if ROW["overlap"] == "all" else {}
    assert found["lowest"].to_dict() == pytest.approx(lowest)
    count = int(ROW["tasks"])
    # The first of each pair is the lower one, and later pairs are higher.
    shift = np.mean([0.2 * nth for nth in range(count // 2)])
    assert found["pair"].to_dict() == pytest.approx({line: value + shift for line, value in lowest.items()})
    mean = 0.1 * (count - 1) / 2
    assert found["mean"].to_dict() == pytest.approx({line: value + mean for line, value in lowest.items()})
    assert found.loc["base", "drift"] == 0 and found.loc["opd", "drift"] == pytest.approx(0.01)
    assert set(found["diversity"]) == {0.02}
    extremity = {line: (abs(value - 0.5) + 0.5) / 2 for line, value in lowest.items()}
    assert found["extremity"].to_dict() == pytest.approx(extremity)
    short, long = cell.student_nfe(ROW), cell.long_nfe(ROW)
    assert found.loc[["opd", "joint", "joint_long", "soup", "base", "teachers"], "nfe"].tolist() == [short, short, long, 0, 0, 600]


def test_the_outcomes_are_those_of_the_archives(tmp_path: Path) -> None:
    """Cells without an archive have no outcomes."""
    archives = sorted(FOLDER.glob("cell-*.tar.xz"))
    for path in archives:
        unpack(path, tmp_path)
    table, lacking = outcomes.outcomes(tmp_path, outcomes.failures())
    assert len(lacking) == 72 - 2 * len(archives)
    stored = FOLDER / "outcomes.csv"
    assert stored.is_file() == bool(archives)
    if archives:
        pd.testing.assert_frame_equal(pd.read_csv(stored), table.round(6), rtol=0, atol=1e-9, check_dtype=False)


def test_an_archive_of_a_cell_has_its_runs_without_weights(made: list[Run], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pack, "results", lambda folder: made)
    monkeypatch.setattr(outcomes, "FAILED", tmp_path / "failed.csv")
    for nth, run in enumerate(made):
        run.folder = tmp_path / "cell-07" / f"{nth}-s{run.spec['seed']}"
        (run.folder / "adapter").mkdir(parents=True)
        for name in ("summary.json", "lock", "sheet.png", "checkpoint.safetensors", "adapter/a.safetensors", "adapter/a.json"):
            (run.folder / name).write_text(name)
    (tmp_path / "cell-07" / "cache").mkdir()
    path = pack.pack(7, tmp_path, tmp_path)
    with tarfile.open(path) as archive:
        names = {member.name for member in archive if member.isfile()}
    runs = {f"cell-07/{run.folder.name}" for run in made}
    assert names == {f"{run}/{name}" for run in runs for name in ("summary.json", "adapter/a.json")}
    path.unlink()
    next(run for run in made if run.spec["method"] == "merge").summary = None
    with pytest.raises(UsageError, match=f"cell 7, seed {SEEDS[0]}: no soup"):
        pack.pack(7, tmp_path, tmp_path)
    assert not path.exists()
    (tmp_path / "failed.csv").write_text(f"cell,seed,line,error\n7,{SEEDS[0]},soup,why\n")
    assert pack.pack(7, tmp_path, tmp_path) == path


def test_outcomes_of_half_a_cell_are_left_out_unless_a_line_failed(made: list[Run], tmp_path: Path) -> None:
    (gone,) = [run for run in made if run.spec["method"] == "opd_analytic" and run.spec["seed"] == SEEDS[1]]
    gone.summary = None
    table, lacking = outcomes.outcomes(tmp_path)
    assert f"cell 7, seed {SEEDS[1]}: no opd" in lacking and set(table["seed"]) == {SEEDS[0]}
    table, lacking = outcomes.outcomes(tmp_path, [(7, SEEDS[1], "opd")])
    found = table[table["seed"] == SEEDS[1]].set_index("line")
    assert found.loc["opd", "pair"] == found.loc["base", "pair"] and len(lacking) == 70
    # The soup has the teachers' scores too.
    assert found.loc["teachers", "pair"] > found.loc["base", "pair"]


def test_a_teacher_that_failed_counts_as_the_base(made: list[Run], tmp_path: Path) -> None:
    for run in made:
        if run.spec["method"] in ("opd_analytic", "merge") and run.spec["seed"] == SEEDS[0]:
            run.summary = None
    _, lacking = outcomes.outcomes(tmp_path)
    assert f"cell 7, seed {SEEDS[0]}: no opd, soup, teachers" in lacking
    table, lacking = outcomes.outcomes(tmp_path, [(7, SEEDS[0], "opd"), (7, SEEDS[0], "soup")])
    found = table[table["seed"] == SEEDS[0]].set_index("line")
    assert set(found.loc[["opd", "soup", "teachers"], "pair"]) == {found.loc["base", "pair"]} and len(lacking) == 70


def test_outcomes_refuse_what_is_no_line_or_there_twice(made: list[Run], tmp_path: Path) -> None:
    made.append(Run("multi_reward", cell.student_nfe(ROW), 0.6, SEEDS[1]))
    with pytest.raises(UsageError, match=f"two runs of joint with seed {SEEDS[1]}"):
        outcomes.outcomes(tmp_path)
    made[-1] = Run("multi_reward", 123, 0.6, SEEDS[1])
    with pytest.raises(UsageError, match="budget of 123 NFE"):
        outcomes.outcomes(tmp_path)


def test_the_picture_shows_the_model_and_its_cells() -> None:
    made = Noise(0, 1e-5)
    data = model.responses(made.outcomes, "joint")
    value, sure = picture.surface(data, 1.0)
    at = {(0, 0): 0.03 + 0.01, (-1, -1): 0.03 + 0.01 - 0.04 - 0.05 - 0.01, (0, -1): 0.03 + 0.01 - 0.05}
    for (conflict, overlap), truth in at.items():
        assert value[conflict, overlap] == pytest.approx(truth, abs=1e-4)
    assert sure[0, 0] and sure[-1, -1] and not sure.all()
    for row in picture.adjusted(data).itertuples():
        truth = 0.03 + 0.01 * row.tasks - 0.04 * row.overlap * row.conflict - 0.05 * row.overlap - 0.01 * row.conflict
        assert row.response == pytest.approx(truth, abs=1e-4)
    with drawing():
        figure = picture.phase(made.outcomes)
    titles = [panel.get_title() for panel in figure.axes[:6]]
    assert titles[0] == "2 tasks, teachers counted" and titles[5] == "6 tasks, teachers not counted"
    assert sum(len(panel.collections[-1].get_offsets()) for panel in figure.axes[:6]) == 2 * 36


def test_what_the_protocol_says_was_seen_before_the_cells_is_what_the_studies_ended_with() -> None:
    text = " ".join((STUDY / "PROTOCOL.md").read_text().split())

    def ended(line: str, rank: int, share: str) -> dict:
        found = studies.summary(studies.named(line, rank, share))
        assert found is not None
        return found

    told = lambda line, share: " and ".join(short(ended(line, rank, share)["confirmed"][0]["value"]) for rank in (4, 64))
    for share, name in (("quarter", "S / 4"), ("full", "S")):
        assert f"at {name} joint RL {told('joint', share)}, rules {told('rule', share)}, distillation {told('opd', share)}" in text
    best = " and ".join(short(max(t["values"][0] for t in ended("joint", rank, "long")["complete"])) for rank in (4, 64))
    assert f"; long joint RL {best}." in text
    chosen = ended("joint", 4, "quarter")["confirmed"][0]
    assert chosen["settings"] == ended("joint", 4, "quarter")["chosen"]["settings"]
    of_task = [short(np.mean(chosen["scores"][f"taste_{number}"]), digits=2) for number in (1, 2, 3, 4)]
    assert "raise one pair ({}, {}) and leave the other where the base is ({}, {})".format(*of_task) in text


def test_what_the_protocol_says_of_products_that_are_left_out() -> None:
    """The bias of a contrast by an effect of size 1, with overlap and conflict from -1 to 1."""
    text, cells = " ".join((STUDY / "PROTOCOL.md").read_text().split()), model.coded()
    o, c = 2 * cells["overlap"] - 1, 2 * cells["conflict"] - 1

    def bias(effect: pd.Series, place: int, own: float = 0.0) -> str:
        found = model.estimates(cells.assign(response=effect), [model.statements()[place].weights])
        return short(found["value"][0] - own, digits=2)

    told = "overlap x conflict squared moves 1a by {} and 2 by {}, one of the squared teachers' share 2 by {} and 1a by {}, of " \
           "conflict x rank 1b by {}."  # fmt: skip
    squared, teachers = o * c**2, cells["teachers"] ** 2
    values = bias(squared, 0), bias(squared, 3, own=1.0), bias(teachers, 3), bias(teachers, 0), bias(c * cells["rank"], 1)
    assert told.format(*values) in text


def test_what_the_protocol_says_was_seen_of_a_cell_is_what_its_runs_ended_with() -> None:
    text = " ".join((STUDY / "PROTOCOL.md").read_text().split())
    found = pd.read_csv(FOLDER / "outcomes.csv").set_index(["cell", "seed", "line"])["pair"]
    seen = [short(found[0, 0, line]) for line in ("base", "joint", "joint_long", "opd")]
    assert "base {}, joint RL {}, long joint RL {}, distillation {}.".format(*seen) in text
