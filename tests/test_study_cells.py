"""Part 2 of the study: every cell's commands are valid, its outcomes are read as what they are, and its model finds effects."""

import importlib.util
import json
import shlex
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import yaml

from bench.config.resolve import resolve
from report.style import drawing
from tests.commands import bench

FOLDER = Path(__file__).parents[1] / "results" / "reference" / "study" / "part2"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"part2_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cell, model, outcomes = script("cell"), script("model"), script("outcomes")
sys.modules["model"] = model
picture = script("picture")
del sys.modules["model"]
TUNED = {
    rank: {
        "multi_reward": {"lora.rank": rank, "lora.alpha": 2 * rank, "params.engine": "nft"},
        "rule": {"lora.rank": rank, "lora.alpha": 2 * rank, "params.engine": "nft", "params.combine": "pcgrad"},
        "opd_analytic": {"lora.rank": rank, "lora.alpha": 2 * rank},
    }
    for rank in (4, 64)
}


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
    made = cell.lines(row, 1, Path("results/x"), "TEACHERS")
    assert list(made) == ["joint_long", "rule", "joint", "opd", "soup"]
    for line, words in made.items():
        spec = spec_of(words)
        assert (spec.seed, spec.backbone, len(spec.tasks)) == (1, f"study-{row['world']}", int(row["tasks"]))
        assert spec.evaluation.split == "test" and not spec.evaluation.guidance_grid
        sources = [spec.scorers[task] for task in spec.tasks]
        assert {source["overlap"] for source in sources} == {row["overlap"]}
        assert {source["among"] for source in sources} == {row["tasks"]}
        assert [source.get("angle") for source in sources] == [None, row["angle"]] * (int(row["tasks"]) // 2)
        if line != "soup":
            assert spec.lora.rank == int(row["rank"])
        if line in ("opd", "soup"):
            assert spec.teachers == {task: f"TEACHERS/{task}" for task in spec.tasks}
    nfe = {line: spec_of(words).budget.nfe for line, words in made.items() if line != "soup"}
    words = cell.teach(row, 1, Path("results/x"))
    taught = words[words.index("--set") + 1]
    share = float(row["teachers"])
    assert nfe["opd"] == nfe["joint"] == nfe["rule"] == 73_728 * float(row["budget"])
    assert taught == f"budget.nfe={nfe['opd'] * share:.0f}"
    assert nfe["joint_long"] == nfe["opd"] * (1 + int(row["tasks"]) * share)
    assert spec_of(made["rule"]).params["combine"] == "pcgrad"


def test_a_dry_run_prints_the_commands(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cell.py", "3", "--seed", "1", "--dry-run"])
    assert cell.main() == 0
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [words[:2] for words in printed] == [["bench", "teach"], *[["bench", "run"]] * 5]
    assert {words[words.index("--results") + 1] for words in printed} == {"results/study/part2/cell-03"}


def test_a_cell_s_teachers_can_be_taught(tmp_path: Path) -> None:
    words = cell.teach(cell.cells()[3], 0, Path("results/x"))
    done = bench([*words[1:], "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    # Budgets are whole updates of a teacher, so that long joint RL is given what teachers cost.
    assert f"training NFE: {6 * 3 * 1_536:,} in total" in done.stdout


class Noise:
    """Made-up outcomes with known effects, all in the worst task's score of distillation."""

    EFFECTS: ClassVar = {"overlap": -0.05, "conflict": -0.01, "tasks": 0.01, "rank": -0.008, "teachers": 0.01, "budget": 0.005}
    TRUTH = (0.03 - 0.005, 0.01, 0.008, 0.03 - 0.05 - 0.01 - 0.04, 0.01)

    def __init__(self, seed: int, noise: float):
        rng, cells = np.random.default_rng(seed), model.coded()
        worth = 0.03 - 0.04 * cells["overlap"] * cells["conflict"]
        worth += sum(effect * cells[name] for name, effect in self.EFFECTS.items())
        worth += cells["world"].map({"1": 0.01, "2": 0.0, "3": -0.01}) + rng.normal(0, noise, len(cells))
        rows = []
        for seed in range(2):
            for index, value in enumerate(worth + rng.normal(0, noise, len(cells))):
                rows += [(index, seed, "opd", 0.5 + value), (index, seed, "joint_long", 0.5), (index, seed, "joint", 0.4)]
        self.outcomes = pd.DataFrame(rows, columns=["cell", "seed", "line", "worst"])
        self.data = model.responses(self.outcomes, "joint_long")


def examined(data: pd.DataFrame) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of cells near 0 is at the edge of its range
        return model.tests(data)


def test_the_model_finds_effects_that_are_there() -> None:
    found = examined(Noise(0, 1e-5).data)
    np.testing.assert_allclose(found["value"], Noise.TRUTH, atol=1e-4)
    assert set(found["verdict"]) == {"holds"}
    opposite = Noise(0, 1e-5).data.assign(response=lambda data: -data["response"])
    assert set(examined(opposite)["verdict"]) == {"fails"}


def test_the_model_s_intervals_cover_the_truth() -> None:
    covered = []
    for seed in range(30):
        found = examined(Noise(seed, 0.01).data)
        covered.append((found["low"] <= Noise.TRUTH) & (found["high"] >= Noise.TRUTH))
    assert 0.9 <= np.mean(covered) <= 0.99  # 150 intervals of 95%; .9 is nearly three standard errors below


def test_where_nothing_is_nothing_is_found() -> None:
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(20):
        data = Noise(0, 0.0).data.assign(response=rng.normal(0, 0.01, 72))
        false += set(examined(data)["verdict"]) != {"undecided"}
    assert false <= 4  # of a family-wise rate of 5%


def test_outcomes_tell_lines_apart(tmp_path: Path, monkeypatch) -> None:
    class Run:
        def __init__(self, method: str, nfe: int, worst: float, combine: str = "sum"):
            self.spec = {"method": method, "seed": 0, "params": {"combine": combine}}
            self.summary = {"cost": {"evaluations": {"training": nfe}}}
            self.worst = worst

    runs = [
        Run("single_task", 10, 0.9), Run("opd_analytic", 20, 0.7), Run("merge", 0, 0.4), Run("multi_reward", 20, 0.6),
        Run("multi_reward", 60, 0.8), Run("multi_reward", 20, 0.5, "pcgrad"),
    ]  # fmt: skip

    def scores(runs: list[Run]) -> pd.DataFrame:
        made = [("student", runs[0].worst, runs[0].worst + 0.1), ("base", 0.2, 0.3)]
        rows = [(name, task, "reward", True, value) for name, low, high in made for task, value in (("a", low), ("b", high))]
        rows += [(name, task, "drift", False, 0.01) for name, *_ in made[:1] for task in "ab"]
        rows += [(name, task, "diversity@x", False, 0.02) for name, *_ in made for task in "ab"]
        return pd.DataFrame(rows, columns=["model", "task", "metric", "headline", "value"])

    (tmp_path / "cell-07").mkdir()
    monkeypatch.setattr(outcomes, "results", lambda _: runs)
    monkeypatch.setattr(outcomes, "scores", scores)
    found = outcomes.outcomes(tmp_path).set_index("line")
    worst = {"opd": 0.7, "soup": 0.4, "joint": 0.6, "joint_long": 0.8, "rule": 0.5, "base": 0.2}
    assert found["worst"].to_dict() == pytest.approx(worst)
    assert found["mean"].to_dict() == pytest.approx({line: value + 0.05 for line, value in worst.items()})
    assert found.loc["base", "drift"] == 0 and found.loc["opd", "drift"] == pytest.approx(0.01)
    assert set(found["diversity"]) == {0.02} and set(found["cell"]) == {7}
    assert json.loads(found["nfe"].to_json()) == {
        "opd": 20, "soup": 0, "joint": 20, "joint_long": 60, "rule": 20, "base": 0}  # fmt: skip


def test_the_picture_shows_the_model_and_its_cells() -> None:
    made = Noise(0, 1e-5)
    value, half = picture.surface(made.data, 1.0)
    at = {(0, 0): 0.03 + 0.01, (-1, -1): 0.03 + 0.01 - 0.04 - 0.05 - 0.01, (0, -1): 0.03 + 0.01 - 0.05}
    for (conflict, overlap), truth in at.items():
        assert value[conflict, overlap] == pytest.approx(truth, abs=1e-4)
    assert 0 < half.max() < 1e-3
    for row in picture.adjusted(made.data).itertuples():
        truth = 0.03 + 0.01 * row.tasks - 0.04 * row.overlap * row.conflict - 0.05 * row.overlap - 0.01 * row.conflict
        assert row.response == pytest.approx(truth, abs=1e-4)
    with drawing():
        figure = picture.phase(made.outcomes)
    titles = [panel.get_title() for panel in figure.axes[:6]]
    assert titles[0] == "2 tasks, teachers counted" and titles[5] == "6 tasks, teachers not counted"
    assert sum(len(panel.collections[-1].get_offsets()) for panel in figure.axes[:6]) == 2 * 36
