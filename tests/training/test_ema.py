"""The average of weights is the released one: an independent copy of its rule, fed with every optimiser step."""

from pathlib import Path

import pytest
import torch

from bench.api.lab import EMA
from bench.config.resolve import resolve
from bench.store.run import read_checkpoint
from bench.training.ema import averages_at, decay_at
from bench.training.execute import Session, execute
from bench.training.loop import Loop

pytestmark = pytest.mark.usefixtures("few_prompts")


class Released:
    """flow_grpo's EMAModuleWrapper, written down again: it is told the index of every optimiser step."""

    def __init__(self, weights: list[torch.Tensor], decay: float, every: int):
        self.average = [w.detach().clone() for w in weights]
        self.decay, self.every = decay, every

    def step(self, weights: list[torch.Tensor], index: int) -> None:
        decay = min((1 + index) / (10 + index), self.decay)
        if (index + 1) % self.every == 0:
            for mine, theirs in zip(self.average, weights):
                mine.add_((1 - decay) * (theirs.detach() - mine))


def test_the_published_figures_of_the_warm_up() -> None:
    assert averages_at(79, 8)
    assert decay_at(79, 0.9) == pytest.approx(80 / 89)  # the 80th step: .899, however rarely one averages
    assert decay_at(0, 0.9) == 0.1
    assert decay_at(10_000, 0.9) == 0.9
    assert [k for k in range(20) if averages_at(k, 8)] == [7, 15]


@pytest.mark.parametrize("inner", [1, 2])
@pytest.mark.parametrize("every", [1, 8])
def test_a_run_averages_as_the_released_code_does(tmp_path: Path, monkeypatch, every: int, inner: int) -> None:
    seen: dict[str, Released] = {}
    descend, start = Loop._descend, Loop._prepare

    def begun(self) -> None:
        start(self)
        seen["rule"], seen["steps"] = Released(self.parameters, 0.9, every), 0

    def stepped(self) -> float | None:
        norm = descend(self)
        seen["rule"].step(self.parameters, seen["steps"])
        seen["steps"] += 1
        return norm

    monkeypatch.setattr(Loop, "_prepare", begun)
    monkeypatch.setattr(Loop, "_descend", stepped)
    spec = resolve(
        "opd_ppo", ["ocr"],
        overrides=[
            "budget={updates: 18}", f"ema.every={every}", f"params.inner_updates={inner}", "params.trajectories=1",
            "evaluation.steps=1", "evaluation.points=[]", "evaluation.split=validation", "optimizer.lr=1e-2",
            "lora.rank=4", "lora.alpha=8", "sampler.steps=3",
        ],
    )  # fmt: skip
    summary = execute(spec, Session(tmp_path / "results"))
    assert seen["steps"] == 18 * inner
    tensors, _ = read_checkpoint(tmp_path / "results" / summary["folder"] / "checkpoint.safetensors")
    prefix = f"adapter/{EMA}/"
    mine = [tensors[name] for name in sorted(tensors) if name.startswith(prefix)]
    live = [tensors[name] for name in sorted(tensors) if name.startswith("adapter/student/")]
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(mine, live))  # the average is another thing than the student
    for ours, theirs in zip(mine, seen["rule"].average, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


SHORT = ["evaluation.steps=1", "evaluation.points=[]", "evaluation.split=validation", "params.trajectories=1",
         "lora.rank=4", "lora.alpha=8", "sampler.steps=2"]  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "every", "told"),
    [("updates: 2", 3, "before"), ("updates: 2", 2, "never"), ("evaluations: 1", 2, "after"), ("seconds: 1e-6", 1, "never")],
)
def test_a_run_that_ends_before_its_first_average_says_so(tmp_path: Path, budget: str, every: int, told: str) -> None:
    said: list[str] = []
    spec = resolve("opd_analytic", ["ocr"], overrides=[*SHORT, f"budget={{{budget}}}", f"ema.every={every}"])
    heard = Session(tmp_path, say=said.append, listen=lambda _label, progress: said.append("batch" if progress.doing else "update"))
    folder = tmp_path / execute(spec, heard)["folder"]
    notes = [i for i, line in enumerate(said) if line.startswith(f"note: ema.every={every} exceeds the ")]
    assert len(notes) == (told != "never")
    if notes:
        assert (notes[0] < said.index("update")) == (told == "before")
    tensors, _ = read_checkpoint(folder / "checkpoint.safetensors")
    average = [tensor for name, tensor in tensors.items() if name.startswith(f"adapter/{EMA}/") and "lora_B" in name]
    assert average and any(tensor.any() for tensor in average) == (told == "never")


@pytest.mark.parametrize(("method", "setting", "short"), [
    ("opd_ppo", "params.inner_updates=2", True), ("opd_ppo", "params.inner_updates=3", False), ("merge", "lora.rank=96", False)
])  # fmt: skip
def test_inner_updates_count_and_methods_that_do_not_train_do_not(method: str, setting: str, short: bool) -> None:
    spec = resolve(method, ["ocr"], overrides=["ema.every=8", setting])
    assert bool(spec.too_short(3)) == short


def test_runs_whose_average_changed_are_other_runs() -> None:
    """Digests of specs as they were before the rule counted optimiser steps."""
    from bench.hashing import text_hash

    def old(spec) -> str:
        settings = {name: value for name, value in spec.without_placement().record().items() if name != "seed"}
        settings["budget"]["evaluations"] = settings["budget"].pop("nfe")  # as the setting was called then
        return text_hash({"spec": settings, "backbone": "x"})

    plain = resolve("opd_analytic", ["ocr"])  # micro's recipes average at every step
    rare = resolve("opd_analytic", ["ocr"], overrides=["ema.every=8"])
    inner = resolve("opd_ppo", ["ocr"], overrides=["params.inner_updates=2"])
    assert plain.digest("x") == old(plain)
    assert rare.digest("x") != old(rare)
    assert inner.digest("x") != old(inner)
