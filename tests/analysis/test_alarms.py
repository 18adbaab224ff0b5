"""Alarms: a reward that rises while what it stands for falls, and nothing else."""

import json

import numpy as np
import pytest

from bench.analysis.alarms import alarms
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.training.execute import Session, execute

N = 60
RNG = np.random.default_rng(0)
NOISE = RNG.normal(scale=0.05, size=N)


def row(share: float, reward: float, **means: float) -> dict:
    rows = {"reward": (reward + NOISE).tolist()}
    rows |= {name.replace("diversity", "diversity@space"): (mean + NOISE[::-1]).tolist() for name, mean in means.items()}
    strata = ["sign"] * N
    return {"task": "ocr", "headline": "reward", "share": share, "strata": strata, "prompts": [*range(N)], "rows": rows}


def test_a_utility_that_falls_while_the_reward_rises_is_one() -> None:
    (alarm,) = alarms([row(0.25, 0.4, gold=0.5), row(0.5, 0.5, gold=0.6), row(1.0, 0.6, gold=0.55)])
    assert (alarm.task, alarm.measure, alarm.since, alarm.at) == ("ocr", "gold", 0.5, 1.0)
    assert alarm.rise.value == pytest.approx(0.1) and alarm.fall.value == pytest.approx(-0.05)
    assert str(alarm).startswith("alarm on ocr: from 50% of the budget to 100% the reward changed by +0.100 [")


@pytest.mark.parametrize(
    "latest",
    [
        row(1.0, 0.6, gold=0.7),  # both rise
        row(1.0, 0.4, gold=0.5),  # both fall
        row(1.0, 0.6, gold=0.6),  # the utility stays
        row(1.0, 0.6),  # the utility is not known
    ],
    ids=["both rise", "both fall", "stays", "unknown"],
)
def test_other_changes_are_none(latest: dict) -> None:
    assert alarms([row(0.5, 0.5, gold=0.6), latest]) == []


def test_a_single_point_needs_the_base() -> None:
    only = row(1.0, 0.6, strict=0.3)
    assert alarms([only]) == []
    (alarm,) = alarms([only], {"ocr": row(0.7, 0.5, strict=0.5)})
    assert (alarm.measure, alarm.since) == ("strict", 0.0) and "from the base to 100%" in str(alarm)


def test_a_point_with_a_higher_reward_hides_no_other() -> None:
    """The base at its guidance scale may have both the higher reward and the higher measure."""
    points = [row(0.5, 0.6, strict=0.65), row(1.0, 0.85, strict=0.4)]
    for base in (None, {"ocr": row(0.0, 0.9, strict=0.7)}):
        (alarm,) = alarms(points, base)
        assert alarm.since == 0.5 and alarm.fall.value == pytest.approx(-0.25)


def test_many_looks_at_a_score_that_stays_raise_few() -> None:
    """Ten points, of a score that does not change, while the reward rises: in a twentieth of the runs, or less."""
    rng, raised = np.random.default_rng(4), 0
    for _ in range(40):
        rows = []
        for k in range(10):
            rows.append(row(0.1 * (k + 1), 0.3 + 0.05 * k, strict=0.5))
            rows[-1]["rows"]["strict"] = (rng.random(N) < 0.5).astype(float).tolist()
        raised += any(alarms(rows[: k + 1]) for k in range(10))
    assert raised <= 5


def test_prompts_that_are_too_few_raise_none() -> None:
    """Eight images of one prompt have no interval over prompts."""
    few = [row(0.5, 0.5, strict=0.6), row(1.0, 0.6, strict=0.2)]
    assert alarms(few)
    for point in few:
        point["prompts"] = [0] * N
    assert alarms(few) == []


def test_diversity_has_to_fall_by_a_quarter() -> None:
    start = row(0.5, 0.5, diversity=1.0)
    assert alarms([start, row(1.0, 0.6, diversity=0.8)]) == []
    (alarm,) = alarms([start, row(1.0, 0.6, diversity=0.7)])
    assert alarm.measure == "diversity@space"
    assert alarms([start, row(1.0, 0.5, diversity=0.2)]) == []  # the reward did not rise


def test_a_change_within_the_noise_is_none() -> None:
    first, second = row(0.5, 0.5, gold=0.6), row(1.0, 0.6, gold=0.6)
    second["rows"]["gold"] = (0.59 + RNG.normal(scale=0.3, size=N)).tolist()
    assert alarms([first, second]) == []


RUN = (
    "evaluation.steps=1", "evaluation.points=[0.25,0.5,0.75]", "budget.updates=8", "params.trajectories=4",
    "checkpoint_every=100", "evaluation.split=validation", "lora.rank=2", "lora.alpha=4",
)  # fmt: skip


def test_a_run_ends_at_an_alarm(tmp_path, monkeypatch, few_prompts) -> None:
    """After the second point (and its start), and as an uninterrupted run would if it was killed before its summary was written."""
    monkeypatch.setattr("bench.training.loop.alarms", lambda rows: ["an alarm"] if len(rows) > 2 else [])
    with pytest.raises(UsageError, match="would choose the end of training by the test prompts"):
        resolve("opd_analytic", ["ocr"], overrides=["evaluation.stop_on_alarm=true"])
    spec = resolve("opd_analytic", ["ocr"], overrides=[*RUN, "evaluation.stop_on_alarm=true"])
    on = resolve("opd_analytic", ["ocr"], overrides=[*RUN])
    assert spec.digest("x") != on.digest("x")
    summary = execute(spec, Session(tmp_path / "results"))
    assert summary["updates"] == 4
    assert "evaluation.stop_on_alarm ended the run at 50% of its budget" in summary["remarks"]
    assert execute(on, Session(tmp_path / "results"))["updates"] == 8
    folder = tmp_path / "results" / summary["folder"]
    points = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(point["step"], point["share"]) for point in points] == [(0, 0.0), (2, 0.25), (4, 0.5)]
    # Killed between the evaluation and the summary: the resumed run trains no further.
    before = (folder / "metrics.jsonl").read_text()
    (folder / "summary.json").unlink()
    again = execute(spec, Session(tmp_path / "results"))
    assert again["updates"] == 4 and (folder / "metrics.jsonl").read_text() == before
    assert again["models"] == summary["models"]
