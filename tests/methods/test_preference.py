"""One student for all weights: the preferences, the student at each of them, its front, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.analysis.fronts import fronts
from bench.analysis.records import Record
from bench.api.lab import EMA, STUDENT
from bench.backbones.adapters import Adapters
from bench.cli.probe_plan import probe_specs
from bench.config.grid import parse_axis
from bench.config.resolve import describe, resolve
from bench.errors import UsageError
from bench.prediction.cost import held_out_evaluations
from bench.training.evaluate import evaluate
from bench.training.execute import Session, execute
from bench.training.laboratory import laboratory
from bench.training.loop import Loop
from bench.training.teachers import locate, training_nfe
from methods.multi_reward import MultiReward
from methods.preference import drawn, lattice, rank_factors

DRAWN = "params.preference=drawn"
RL = [DRAWN, "params.groups=2", "params.group_size=2", "params.nft.timesteps=1"]
SHORT = ["budget.updates=3", "evaluation.steps=1", "evaluation.points=[]"]
TASKS = ["ocr", "geneval"]


def test_the_lattice_is_all_multiples() -> None:
    assert lattice(["a", "b"], 2) == {
        "a=1+b=0": {"a": 1, "b": 0},
        "a=0.5+b=0.5": {"a": 0.5, "b": 0.5},
        "a=0+b=1": {"a": 0, "b": 1},
    }
    points = lattice(["a", "b", "c"], 4)
    assert len(points) == 15  # 6 choose 2
    assert all(sum(point.values()) == 1 for point in points.values())


def test_preferences_are_uniform_on_the_simplex() -> None:
    """Of T parts each has mean 1 / T and variance (T - 1) / (T^2 (T + 1)); two parts are uniform from 0 to 1."""
    generator = np.random.default_rng(0)
    for tasks in (["a", "b"], ["a", "b", "c"]):
        parts = np.array([list(drawn(tasks, generator).values()) for _ in range(20_000)])
        count = len(tasks)
        assert np.allclose(parts.sum(1), 1)
        assert parts.mean(0) == pytest.approx([1 / count] * count, abs=0.01)
        assert parts.var(0) == pytest.approx([(count - 1) / count**2 / (count + 1)] * count, rel=0.05)


def test_every_task_has_its_part_of_the_rank() -> None:
    assert rank_factors({"a": 0.25, "b": 0.75}, 4) == [0.25, 0.25, 0.75, 0.75]


class Seen:
    """What a run conditioned and trained: gates by adapter, in order, and plans."""

    def __init__(self, monkeypatch) -> None:
        self.gates: list[tuple[str, list[float]]] = []
        self.plans: list[dict[str, float]] = []
        true_plan, true_gate = MultiReward.plan, Adapters.gate

        def plan(method, lab) -> dict[str, float]:
            self.plans.append(true_plan(method, lab))
            return self.plans[-1]

        def gate(adapters, name: str, factors: list[float]) -> None:
            self.gates.append((name, factors))
            true_gate(adapters, name, factors)

        monkeypatch.setattr(MultiReward, "plan", plan)
        monkeypatch.setattr(Adapters, "gate", gate)


@pytest.mark.usefixtures("few_prompts")
def test_a_run_trains_the_student_at_the_drawn_weights_and_shows_its_points(tmp_path: Path, monkeypatch) -> None:
    seen = Seen(monkeypatch)
    overrides = [*RL, *SHORT, "optimizer.lr=0.05"]
    spec = resolve("multi_reward", TASKS, overrides=overrides)
    summary = execute(spec, Session(tmp_path / "results"))
    rank = spec.lora.rank
    assert len({tuple(plan.values()) for plan in seen.plans}) == 3
    trained = [(name, factors) for name, factors in seen.gates if name != EMA]
    # The engine's older policy has the gate of the student: an image's likelihood is of the policy at its weights.
    assert trained == [(name, rank_factors(plan, rank)) for plan in seen.plans for name in (STUDENT, "old")]
    shown_first = next(factors for name, factors in seen.gates if name == EMA)
    assert shown_first == rank_factors({"a": 0.5, "b": 0.5}, rank)
    folder = tmp_path / "results" / summary["folder"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["weight/ocr"] for row in rows] == [plan["ocr"] for plan in seen.plans]

    # Every point's adapter is a plain one that evaluates to the point's scores; the run's own is at its weights.
    assert list(summary["points"]) == ["ocr=1+geneval=0", "ocr=0.5+geneval=0.5", "ocr=0+geneval=1"]
    plain = resolve("multi_reward", TASKS, overrides=[*RL[1:], *SHORT])
    lab, _ = laboratory(plain, "base", tmp_path / "other")
    sampler = plain.evaluation.build(describe("micro").levels)
    adapters = lab.backbone.adapters
    shown = {"student": summary["models"]["student"]} | summary["points"]
    changes = {}
    for name, point in shown.items():
        adapter = f"read {len(changes)}"
        adapters.load(adapter, folder / "adapter" if name == "student" else folder / "points" / name)
        changes[name] = torch.cat([change.flatten() for change in adapters.deltas(adapter).values()])
        for task in TASKS:
            scale, split = plain.evaluation.scale, plain.evaluation.split
            mine = evaluate(lab.backbone, lab.tasks[task], adapter, sampler, scale, split).record()["rows"]
            for metric, values in point[task]["rows"].items():
                if metric.startswith(("diversity", "entropy")):  # a laboratory has no feature space
                    continue
                known, own = (np.array(found, float) for found in (values, mine[metric]))
                assert own == pytest.approx(known, abs=1e-4, nan_ok=True), (name, task, metric)
    first, middle, last = (changes[name] for name in summary["points"])
    assert (first - last).norm() > 0.1 * first.norm()
    assert torch.allclose(middle, (first + last) / 2, atol=1e-6 * float(first.abs().max()) + 1e-8)
    assert torch.equal(changes["student"], middle)

    # The points are a front.
    record = Record(summary, [], spec.record())
    (found,) = fronts({"multi_reward": [record]}, tuple(TASKS))
    assert found.label == "multi_reward (one for all weights)" and list(found.points) == list(summary["points"])
    best = summary["points"]["ocr=1+geneval=0"]["ocr"]
    assert found.points["ocr=1+geneval=0"]["ocr"].value == pytest.approx(np.mean(best["rows"][best["headline"]]))


def test_what_a_family_of_students_cannot_have_is_refused() -> None:
    refused = {
        "lora.rank=15": r"divides the rank .* lora\.rank 15 is no multiple of 2 tasks: set it to 16",
        "params.combine=pcgrad": r"another student in every update and cannot be used with params\.combine pcgrad",
        "params.allocation=by_gap": r"cannot be used with params\.allocation by_gap",
        "probes.interference=2": r"cannot be used with probes\.interference",
        "params.start=merge": r"cannot be used with params\.start merge",
        "params.teachers=all": r"cannot be used with params\.teachers all",
        "params.weights.ocr=3": r"cannot be used with params\.weights",
        "params.divisions=0": r"params\.divisions",
        "params.batches=alternate": r"params\.preference drawn combines .* set params\.batches mixed",
    }
    for setting, message in refused.items():
        with pytest.raises(UsageError, match=message):
            resolve("opd_analytic", TASKS, overrides=["params.batches=mixed", DRAWN, setting])
    with pytest.raises(UsageError, match=r"params\.preference drawn combines .* but the run has one"):
        resolve("opd_analytic", ["ocr"], overrides=["params.batches=mixed", DRAWN])
    with pytest.raises(
        UsageError, match=r"params\.divisions 20 of 3 tasks are 231 points.*set params\.divisions to 12"
    ):
        resolve(
            "multi_reward", ["ocr", "geneval", "pickscore"], overrides=[DRAWN, "lora.rank=66", "params.divisions=20"]
        )
    with pytest.raises(UsageError, match="a probe measures one student, but 'multi_reward' trains a family"):
        probe_specs(["multi_reward"], TASKS, "micro", [], [DRAWN])
    with pytest.raises(UsageError, match=r"params\.divisions are the points of a front"):
        resolve("multi_reward", TASKS, overrides=["params.divisions=4"])


def test_without_it_runs_keep_their_records() -> None:
    assert not {"preference", "divisions"} & resolve("multi_reward", TASKS).record()["params"].keys()


@pytest.mark.usefixtures("few_prompts")
def test_a_run_that_is_stopped_between_its_points_goes_on_with_the_next(tmp_path: Path, monkeypatch) -> None:
    overrides = [*RL, *SHORT, "budget.updates=1"]
    spec = resolve("multi_reward", TASKS, overrides=overrides)
    whole = execute(spec, Session(tmp_path / "whole" / "results"))
    true, done, said = Loop.evaluate, [], []

    def evaluate_until(stop: int):
        def evaluate(loop: Loop, adapter: str | None, task: str, *rest, **given):
            if adapter == EMA:
                done.append(task)
            if len(done) == stop:
                raise KeyboardInterrupt
            return true(loop, adapter, task, *rest, **given)

        return evaluate

    root = tmp_path / "cut" / "results"
    monkeypatch.setattr(Loop, "evaluate", evaluate_until(2 + 3 + 1))  # twice the student, then three of its points
    with pytest.raises(KeyboardInterrupt):
        execute(spec, Session(root))
    (log,) = root.glob("multi_reward-*/points.jsonl")
    assert len(log.read_text().splitlines()) == 3
    with log.open("a") as file:  # a kill may leave half a line
        file.write('{"point": "ocr=0.5')
    done.clear()
    monkeypatch.setattr(Loop, "evaluate", evaluate_until(0))
    resumed = execute(spec, Session(root, say=said.append))
    assert len(done) == 3  # the student and half of the points were complete
    assert resumed["points"] == whole["points"] and resumed["models"] == whole["models"]
    told = [line for line in said if line.startswith("evaluating point")]
    assert told == ["evaluating point 2 of 3: ocr=0.5+geneval=0.5", "evaluating point 3 of 3: ocr=0+geneval=1"]


@pytest.mark.usefixtures("few_prompts")
def test_a_point_is_a_teacher_with_the_guidance_and_the_cost_of_its_run(tmp_path: Path) -> None:
    guided = ["sampler.guidance=2", "evaluation.guidance=3"]
    spec = resolve("multi_reward", TASKS, overrides=[*RL, *SHORT, "budget.updates=1", "params.divisions=1", *guided])
    root = tmp_path / "results"
    summary = execute(spec, Session(root))
    (log,) = root.glob("multi_reward-*/points.jsonl")
    teacher = log.parent / "points" / "ocr=1+geneval=0"
    taught = resolve("opd_analytic", ["ocr"], overrides=[f"teachers.ocr={teacher}"])
    assert taught.teacher_guidance == {"ocr": 3}
    found = locate(taught, describe("micro"), root, describe("micro").fingerprint())
    assert training_nfe(found) == {"ocr": summary["cost"]["evaluations"]["training"]}
    # Its name stays whole where values are listed.
    assert parse_axis(f"lora.start={teacher},{log.parent / 'adapter'}", taught)[1] == [
        str(teacher),
        str(log.parent / "adapter"),
    ]


def test_points_count_as_held_out_evaluations() -> None:
    overrides = ["evaluation.points=[]", "budget.updates=9"]
    plain = resolve("multi_reward", TASKS, overrides=overrides)
    drawn_too = resolve("multi_reward", TASKS, overrides=[*overrides, DRAWN, "params.divisions=4"])
    assert held_out_evaluations(drawn_too, 9) == held_out_evaluations(plain, 9) + 5
