"""RL on a task with several rewards: two processes do what one does, a killed run resumes, records have every reward."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config.resolve import resolve
from bench.registry import find
from bench.sampler.levels import FlowLevels
from bench.store.run import read_checkpoint
from bench.training.execute import Session, execute
from tests.commands import bench, together
from tests.tiny_tasks import register
from tests.training.test_resume import dies, records

SET = ["rewards.red.dark=0.5", "sampler.steps=2", "evaluation.steps=1", "evaluation.split=validation", "params.nft.timesteps=1"]  # fmt: skip
# AdamW's step is proportional to the gradient with so large an eps. Odd numbers of prompts for two processes.
PAIR = [*SET, "budget.updates=2", "evaluation.points=[]", "optimizer.eps=1", "optimizer.lr=1", "params.groups=5", "params.group_size=4"]  # fmt: skip
pytestmark = pytest.mark.usefixtures("few_prompts")

RULES = ("sum", "per_reward", "gdpo", "pareto")


def words(settings: list[str], folder: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["run", "--method", "multi_reward", "--tasks", "red,ocr", "--results", f"{folder}/results", *sets]


def registers_and_dies(moment: str, count: int) -> None:
    register()
    dies(moment, count)


def students(root: Path) -> torch.Tensor:
    (path,) = root.glob("results/multi_reward-*/checkpoint.safetensors")
    state, _ = read_checkpoint(path)
    return torch.cat([state[name].flatten() for name in state if name.startswith("adapter/student")])


def metrics(root: Path) -> list[dict]:
    (path,) = root.glob("results/multi_reward-*/metrics.jsonl")
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gdpo", "pareto"])
def test_two_processes_update_as_one_does(tmp_path: Path, rule: str) -> None:
    settings = [*PAIR, f"params.reward_set={rule}"]
    done = bench(words(settings, "one"), tmp_path, before=register)
    assert done.returncode == 0, done.stderr
    ended = together(words(settings, "two"), tmp_path, register)
    assert [done.returncode for done in ended] == [0, 0], ended[0].stderr[-2000:]
    one, two = (students(tmp_path / name) for name in ("one", "two"))
    assert (one - two).norm() < 1e-6 * one.norm()
    for mine, theirs in zip(*(metrics(tmp_path / name) for name in ("one", "two")), strict=True):
        numbers = {k: v for k, v in mine.items() if k != "evaluations"}
        assert numbers == pytest.approx({k: theirs[k] for k in numbers}, rel=1e-4, abs=1e-7)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identically(tmp_path: Path) -> None:
    few = [
        "params.groups=2",
        "params.group_size=4",
        "budget.updates=4",
        "checkpoint_every=2",
        "evaluation.points=[0.5]",
    ]
    settings = [*SET, *few, "params.reward_set=gdpo"]
    done = bench(words(settings, "whole"), tmp_path, before=register)
    assert done.returncode == 0, done.stderr
    bench(words(settings, "killed"), tmp_path, before=registers_and_dies, arguments=("torn_line", 4))
    again = bench(words(settings, "killed"), tmp_path, before=register)
    assert again.returncode == 0, again.stderr
    assert records(tmp_path / "killed" / "results") == records(tmp_path / "whole" / "results")


@pytest.mark.slow
def test_every_rule_trains_and_every_reward_is_recorded(tiny_tasks, tmp_path: Path) -> None:
    few = ["params.groups=2", "params.group_size=12", "budget.updates=1", "evaluation.points=[]"]
    adapters = []
    for rule in RULES:
        spec = resolve("multi_reward", ["red", "ocr"], overrides=[*SET, *few, f"params.reward_set={rule}"])
        summary = execute(spec, Session(tmp_path / rule / "results"))
        adapters.append(students(tmp_path / rule))
        predicted = find("method", "multi_reward").predict(spec, spec.sampler.build(FlowLevels(3.0)))
        assert summary["cost"]["evaluations"]["training"] == predicted  # further scorers cost no NFE
        (row,) = metrics(tmp_path / rule)
        assert row["reward/red"] == pytest.approx(row["reward/red.red"] + 0.5 * row["reward/red.dark"])
        assert "reward/ocr" in row and "reward/ocr.ocr" not in row
    for model in ("student", "base"):
        rows = summary["models"][model]["red"]["rows"]
        assert {"reward", "dark.reward", "dark.darkness", "reward_sum"} <= rows.keys()
        np.testing.assert_allclose(rows["reward_sum"], np.array(rows["reward"]) + 0.5 * np.array(rows["dark.reward"]))
        assert "reward_sum" not in summary["models"][model]["ocr"]["rows"]
    assert summary["scorers"]["red"] == "1.0 x micro-red-1 + 0.5 x micro-dark-1"
    assert len({tuple(adapter.tolist()) for adapter in adapters}) == len(RULES)  # none of them is another's


def test_the_weighted_sum_rises(tiny_tasks, tmp_path: Path) -> None:
    few = ["params.groups=3", "params.group_size=8", "budget.updates=6", "evaluation.points=[]", "ema.every=1"]
    spec = resolve("single_task", ["red"], overrides=[*SET, *few, "optimizer.lr=3e-3", "params.reward_set=per_reward"])
    models = execute(spec, Session(tmp_path / "results"))["models"]
    student, base = (np.mean(models[name]["red"]["rows"]["reward_sum"]) for name in ("student", "base"))
    assert student > base + 0.005
