"""Weights that adapt to the tasks' distances: the rules by hand, what is measured, and resuming."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.registry import find
from bench.system.workers import ALONE
from bench.training.execute import Session, execute
from methods.allocation import LEAST, MOST, WINDOW, Allocation, factors
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.opd_analytic import OpdAnalytic, OpdOptions
from tests.training.test_resume import records

RULES = ("by_loss", "by_gap", "by_progress")


def windows(*means: tuple[float, ...]) -> torch.Tensor:
    """Distances [U, T] whose window means are as given, with noise within each window."""
    rows = []
    for mean in means:
        noise = torch.linspace(-0.5, 0.5, WINDOW, dtype=torch.float64)[:, None]
        rows.append(torch.tensor(mean, dtype=torch.float64) * (1 + noise))
    return torch.cat(rows)


def test_by_loss_is_in_proportion_to_the_last_window() -> None:
    distances = windows((9.0, 9.0), (1.0, 3.0))
    assert factors("by_loss", distances).tolist() == pytest.approx([0.5, 1.5])
    begun = torch.cat([distances, torch.full((WINDOW - 1, 2), 100.0, dtype=torch.float64)])
    assert factors("by_loss", begun).tolist() == pytest.approx([0.5, 1.5])  # an incomplete window does not count


def test_by_gap_is_the_part_that_remains() -> None:
    """Half and a quarter remain of unequal beginnings: 2/3 and 1/3 of the sum."""
    assert factors("by_gap", windows((10.0, 4.0), (7.0, 7.0), (5.0, 1.0))).tolist() == pytest.approx([4 / 3, 2 / 3])


def test_by_progress_is_the_dynamic_weight_average() -> None:
    """Against the formula of arXiv 1803.10704, Eq. 7, written out; the first window plays no part."""
    slow, fast = math.exp(0.9 / 2), math.exp(0.3 / 2)
    expected = [2 * slow / (slow + fast), 2 * fast / (slow + fast)]
    assert factors("by_progress", windows((99.0, 99.0), (10.0, 10.0), (9.0, 3.0))).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
def test_before_there_is_enough_to_see_all_count_alike(rule: str) -> None:
    assert factors(rule, windows((1.0, 2.0))[:-1]).tolist() == [1, 1]
    unchanged = factors(rule, windows((1.0, 2.0), (1.0, 2.0)))
    assert unchanged.tolist() == ([1, 1] if rule != "by_loss" else pytest.approx([2 / 3, 4 / 3]))


@pytest.mark.parametrize("rule", RULES)
def test_what_vanishes_is_no_division_by_zero(rule: str) -> None:
    assert factors(rule, windows((0.0, 0.0), (0.0, 0.0))).tolist() == pytest.approx([1, 1])
    extreme = factors(rule, windows((0.0, 1.0), (0.0, 1e6)))
    assert extreme.isfinite().all()
    if rule != "by_progress":
        assert extreme.min() >= LEAST and extreme.max() <= MOST


def test_factors_multiply_the_given_weights() -> None:
    opd = OpdAnalytic(OpdOptions(allocation="by_loss", weights={"ocr": 3}))
    opd.allocation.distances_UT = windows((1.0, 3.0))
    noted: dict[str, float] = {}
    lab = SimpleNamespace(tasks={"geneval": None, "ocr": None}, note=noted.__setitem__)
    assert opd.plan(lab) == pytest.approx({"geneval": 0.5 / 5, "ocr": 4.5 / 5})
    assert noted == pytest.approx({"weight/geneval": 0.1, "weight/ocr": 0.9})


def test_distances_of_shards_add_up_to_those_of_the_batch() -> None:
    """Means of 2 and 4 over shards of one and two thirds of the prompts."""
    shards = [[2.0 / 3], [4.0 * 2 / 3]]
    lab = SimpleNamespace(workers=SimpleNamespace(gather=lambda mine: shards), shard_fraction=lambda task: 1 / 3)
    allocation = Allocation("by_loss")
    allocation.record(lab, {"ocr": 2.0})
    assert allocation.distances_UT.tolist() == [pytest.approx([10 / 3])]


def test_in_rl_the_distance_is_to_the_highest_reward() -> None:
    method = MultiReward(MultiRewardOptions(allocation="by_gap"))
    lab = SimpleNamespace(
        tasks={"ocr": SimpleNamespace(highest_reward=1.0)}, notes={"reward/ocr": 0.25}, workers=ALONE, shard_fraction=lambda task: 1.0, step=0, inner=0,
        backbone=SimpleNamespace(adapters=SimpleNamespace(parameters=lambda name: [torch.zeros(1)])),
    )  # fmt: skip
    method.after_update(lab)
    assert method.state()["distances"].tolist() == [[0.75]]


def test_a_run_too_short_to_adapt_says_so() -> None:
    method = MultiReward(MultiRewardOptions(allocation="by_gap"))
    assert "never adapted the weights: it compares windows of 10 updates" in method.remarks([])[0]
    method.load_state({"distances": torch.ones(20, 1, dtype=torch.float64)})
    assert method.remarks([]) == []
    assert MultiReward(MultiRewardOptions()).remarks([]) == []


def test_where_there_is_nothing_to_allocate_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"params\.allocation by_loss combines .* but the run has one"):
        resolve("opd_analytic", ["ocr"], overrides=["params.allocation=by_loss"])
    alternate = ["params.allocation=by_gap", "params.batches=alternate"]
    with pytest.raises(UsageError, match=r"set params\.batches mixed"):
        resolve("opd_analytic", ["ocr", "geneval"], overrides=alternate)
    with pytest.raises(UsageError, match=r"params\.allocation by_loss needs the distance of every task"):
        resolve("sft", ["ocr", "geneval"], overrides=["params.allocation=by_loss", "params.batches=mixed"])


SHORT = ["params.batches=mixed", "evaluation.steps=1", "evaluation.points=[]", "checkpoint_every=1"]
RUNS = {
    "opd_analytic": ["params.trajectories=2"],
    "multi_reward": ["params.groups=2", "params.group_size=2", "params.nft.timesteps=1"],
}


@pytest.mark.usefixtures("few_prompts")
@pytest.mark.parametrize("method", RUNS)
def test_a_run_logs_its_weights_and_resumes_to_the_bit(tmp_path: Path, monkeypatch, method: str) -> None:
    monkeypatch.setattr("methods.allocation.WINDOW", 2)
    short = [s for s in SHORT if method == "opd_analytic" or "batches" not in s]
    overrides = [*short, *RUNS[method], "budget.updates=6", "params.allocation=by_loss"]
    spec = resolve(method, ["ocr", "geneval"], overrides=overrides)
    whole = execute(spec, Session(tmp_path / "whole"))
    cls = find("method", method)
    honest = cls.after_update

    def dies(self, lab) -> None:
        if lab.step == 3:
            raise KeyboardInterrupt
        honest(self, lab)

    with monkeypatch.context() as patch, pytest.raises(BaseException):  # noqa: B017 - whatever an interrupt becomes
        patch.setattr(cls, "after_update", dies)
        execute(spec, Session(tmp_path / "cut"))
    execute(spec, Session(tmp_path / "cut"))
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    log = (tmp_path / "whole" / whole["folder"] / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()]
    key, sign = ("kl", 1) if method == "opd_analytic" else ("reward", -1)
    start = 0 if method == "opd_analytic" else 1
    for update, row in enumerate(rows):
        seen = update // 2 * 2
        assert row["weight/ocr"] + row["weight/geneval"] == pytest.approx(1)
        if not seen:
            assert row["weight/ocr"] == 0.5
            continue
        ocr, geneval = (
            sum(start + sign * r[f"{key}/{task}"] for r in rows[seen - 2 : seen]) for task in ("ocr", "geneval")
        )
        assert row["weight/ocr"] == pytest.approx(ocr / (ocr + geneval))
