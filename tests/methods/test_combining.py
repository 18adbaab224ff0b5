"""Rules for combining gradients against their papers' definitions, in float64, on gradients small enough to see through."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls

from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.training.execute import Session, execute
from methods.combining import CAGRAD_RADIUS, RULES, combined_weights, products_of
from methods.opd_analytic import OpdAnalytic
from methods.signal import SAMPLE, Signal, signal_shares
from tests.training.test_resume import records

CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)


def combined(rule: str, rows_TP: torch.Tensor, seed: int = 0) -> np.ndarray:
    return (combined_weights(rule, products_of(list(rows_TP)), seed) @ rows_TP).numpy()


def drawn(tasks: int, seed: int) -> torch.Tensor:
    """Gradients of which some conflict, of unequal norms."""
    rows = torch.randn(tasks, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows * torch.tensor([1.0, 3.0, 0.2, 1.5], dtype=torch.float64)[:tasks, None]


def least_on_simplex(cost, tasks: int) -> np.ndarray:
    """Weights that minimise a convex cost, by a general solver from several starts."""
    found = [
        minimize(cost, start, bounds=[(0, 1)] * tasks, constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                 options={"ftol": 1e-15, "maxiter": 1000})
        for start in (np.full(tasks, 1 / tasks), *np.eye(tasks) * 0.8 + 0.2 / tasks)
    ]  # fmt: skip
    return min(found, key=lambda result: result.fun).x


DRAWN = [(2, 0), (2, 1), (3, 2), (3, 3), (4, 4), (4, 5)]


def test_pcgrad_by_hand() -> None:
    """g1 off g2 is (.5, .5); g2 off g1 is (0, 1)."""
    assert combined("pcgrad", CONFLICT) == pytest.approx([0.5, 1.5])


def test_pcgrad_visits_tasks_in_the_seed_s_order() -> None:
    rows = drawn(4, 4)
    results = {tuple(combined("pcgrad", rows, seed).round(12)) for seed in range(8)}
    assert len(results) > 1
    before = torch.random.get_rng_state()
    assert (combined("pcgrad", rows, 5) == combined("pcgrad", rows, 5)).all()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("tasks", "seed"), DRAWN)
def test_mgda_is_the_shortest_convex_combination(tasks: int, seed: int) -> None:
    rows = drawn(tasks, seed).numpy()
    best = least_on_simplex(lambda w: ((w @ rows) ** 2).sum(), tasks)
    assert combined("mgda", torch.from_numpy(rows)) / tasks == pytest.approx(best @ rows, abs=1e-4)


@pytest.mark.parametrize(("tasks", "seed"), DRAWN)
def test_cagrad_is_the_mean_and_a_step_towards_the_worst_task(tasks: int, seed: int) -> None:
    rows = drawn(tasks, seed).numpy()
    mean = rows.mean(0)
    radius = CAGRAD_RADIUS * np.linalg.norm(mean)
    best = least_on_simplex(lambda w: (w @ rows) @ mean + radius * np.linalg.norm(w @ rows), tasks) @ rows
    expected = mean + radius / np.linalg.norm(best) * best
    assert combined("cagrad", torch.from_numpy(rows)) / tasks == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("tasks", "seed"), DRAWN)
def test_imtl_g_has_equal_projections_on_all_tasks(tasks: int, seed: int) -> None:
    rows = drawn(tasks, seed)
    weights = combined_weights("imtl_g", products_of(list(rows)), 0) / tasks
    assert float(weights.sum()) == pytest.approx(1)
    projections = (rows / rows.norm(dim=1, keepdim=True)) @ (weights @ rows)
    assert projections.numpy() == pytest.approx(float(projections[0]), rel=1e-6)


@pytest.mark.parametrize(("tasks", "seed"), DRAWN)
def test_aligned_mtl_makes_all_singular_values_the_least(tasks: int, seed: int) -> None:
    rows = drawn(tasks, seed)
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    aligned = singular.min() * left @ right
    assert combined("aligned_mtl", rows) == pytest.approx(aligned.sum(0).numpy(), rel=1e-6)


@pytest.mark.parametrize(("tasks", "seed"), DRAWN)
def test_nash_mtl_gives_every_task_the_same_product_of_weight_and_gain(tasks: int, seed: int) -> None:
    """G a = 1 / a, for G divided by its trace."""
    products = products_of(list(drawn(tasks, seed)))
    weights = combined_weights("nash_mtl", products, 0)
    assert (weights > 0).all()
    assert (weights * (products @ weights) / products.trace()).numpy() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("tasks", "seed"), DRAWN)
def test_upgrad_sums_projections_on_the_cone_that_harms_no_task(tasks: int, seed: int) -> None:
    rows = drawn(tasks, seed).numpy()
    projected = []
    for row in rows:  # the nearest point of the dual cone is row + J' m with the m >= 0 that makes it shortest
        multipliers, _ = nnls(rows.T, -row)
        projected.append(row + rows.T @ multipliers)
    found = combined("upgrad", torch.from_numpy(rows))
    assert found == pytest.approx(sum(projected), abs=1e-3)
    assert (rows @ found > -1e-3).all()


@pytest.mark.parametrize("rule", RULES)
def test_equal_gradients_are_summed_and_zero_ones_left_out(rule: str) -> None:
    row = torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64)
    more = 1 + CAGRAD_RADIUS if rule == "cagrad" else 1
    assert combined(rule, row.repeat(3, 1)) == pytest.approx(3 * more * row.numpy(), rel=2e-3)
    with_zero = torch.stack([row, torch.zeros_like(row), row])
    assert combined(rule, with_zero) == pytest.approx(2 * more * row.numpy(), rel=2e-3)
    assert (combined(rule, torch.zeros(2, 3, dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("rule", ["sum", "pcgrad", "upgrad"])
def test_nothing_changes_where_nothing_conflicts(rule: str) -> None:
    rows = torch.tensor([[1.0, 0.0, 0.5], [0.2, 2.0, 0.0]], dtype=torch.float64)
    assert combined(rule, rows) == pytest.approx(rows.sum(0).numpy(), rel=1e-3)


def test_where_there_is_one_gradient_a_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="but the run has one"):
        resolve("opd_analytic", ["ocr"], overrides=["params.combine=pcgrad"])
    with pytest.raises(UsageError, match=r"set params\.batches mixed"):
        resolve("opd_analytic", ["ocr", "geneval"], overrides=["params.combine=pcgrad", "params.batches=alternate"])


def test_the_default_leaves_runs_their_names() -> None:
    assert "combine" not in resolve("opd_analytic", ["ocr", "geneval"]).record()["params"]


SHORT = [
    "params.trajectories=4", "params.batches=mixed", "budget.updates=3", "evaluation.steps=1", "evaluation.points=[]",
    "evaluation.split=validation", "checkpoint_every=1",
]  # fmt: skip


@pytest.mark.usefixtures("few_prompts")
def test_a_run_records_the_conflict_and_resumes_to_the_bit(tmp_path: Path, monkeypatch) -> None:
    import json

    spec = resolve("opd_analytic", ["ocr", "geneval"], overrides=[*SHORT, "params.combine=cagrad"])
    whole = execute(spec, Session(tmp_path / "whole"))
    honest = OpdAnalytic.after_update

    def dies(self, lab) -> None:
        if lab.step == 1:
            raise KeyboardInterrupt
        honest(self, lab)

    with monkeypatch.context() as patch, pytest.raises(BaseException):  # noqa: B017 - whatever an interrupt becomes
        patch.setattr(OpdAnalytic, "after_update", dies)
        execute(spec, Session(tmp_path / "cut"))
    execute(spec, Session(tmp_path / "cut"))
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    rows = [json.loads(x) for x in (tmp_path / "whole" / whole["folder"] / "metrics.jsonl").read_text().splitlines()]
    (remark,) = whole["remarks"]
    shares = signal_shares(rows)
    assert shares.keys() == {"ocr", "geneval"}
    assert "params.combine cagrad acted mostly on noise" in remark
    assert f"geneval {shares['geneval']:.0%}, ocr {shares['ocr']:.0%}" in remark
    for row in rows:
        assert row["gradient_norm/ocr"] > 0 and row["gradient_norm/geneval"] > 0
        assert -1 <= row["cosine_lowest"] <= 1
        assert 0 < row["combine_change"] < 2  # CAGrad always adds to the mean


def test_weights_of_tasks_in_distillation() -> None:
    mixed = ["params.batches=mixed", "params.weights.ocr=3"]
    spec = resolve("opd_analytic", ["ocr", "geneval"], overrides=mixed)
    method = OpdAnalytic(OpdAnalytic.Options.model_validate(spec.params))
    lab = SimpleNamespace(tasks=dict.fromkeys(spec.tasks))
    assert method.plan(lab) == {"ocr": 0.75, "geneval": 0.25}
    with pytest.raises(UsageError, match=r"set params\.batches mixed"):
        resolve("opd_analytic", ["ocr", "geneval"], overrides=mixed[1:])
    with pytest.raises(UsageError, match="the run has one"):
        resolve("opd_analytic", ["ocr"], overrides=mixed)


def test_successive_gradients_tell_signal_from_noise() -> None:
    """With a signal of unit length and noise of variance 3 in all, a quarter of the squared norm is signal."""
    generator = torch.Generator().manual_seed(0)
    size = 3 * SAMPLE
    mean = torch.randn(size, generator=generator) / size**0.5
    signal, rows = Signal(), []
    for step in range(9):
        if step == 5:  # a resumed run goes on
            signal, before = Signal(), signal
            signal.load_state(before.state())
        noise = torch.randn(size, generator=generator) * (3 / size) ** 0.5
        gradients = {"ocr": mean + noise, "still": mean}
        rows.append({f"signal/{task}": float(signal.cosine(task, gradient)) for task, gradient in gradients.items()})
    assert rows[0] == {"signal/ocr": 0, "signal/still": 0}
    assert signal_shares(rows) == pytest.approx({"ocr": 0.25, "still": 1.0}, abs=0.01)
    assert sum(tensor.numel() for tensor in signal.state().values()) == 2 * SAMPLE
    assert float(signal.cosine("ocr", torch.zeros(size))) == 0.0


@pytest.mark.usefixtures("few_prompts")
def test_the_sum_as_a_rule_is_the_sum_without_one(tmp_path: Path, monkeypatch) -> None:
    """To rounding: separating gradients and adding them up again changes nothing."""
    from bench.store.run import read_checkpoint
    from methods.combining import CombiningMethod

    exact = ["optimizer.eps=1", "optimizer.lr=1"]
    spec = resolve("opd_analytic", ["ocr", "geneval"], overrides=[*SHORT, *exact])
    made = []
    for name in ("without", "with"):
        if name == "with":
            monkeypatch.setattr(CombiningMethod, "combines", lambda self: True)
        summary = execute(spec, Session(tmp_path / name))
        tensors, _ = read_checkpoint(tmp_path / name / summary["folder"] / "checkpoint.safetensors")
        made.append(torch.cat([v.flatten() for k, v in sorted(tensors.items()) if k.startswith("adapter/student")]))
    assert (made[0] - made[1]).norm() < 1e-6 * made[0].norm()
