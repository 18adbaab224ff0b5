"""Out of memory: one line that says where and which settings help."""

from pathlib import Path

import pytest
import torch

from bench.backbones.flow import FlowBackbone
from bench.errors import BenchError
from bench.memory import memory
from bench.runner import Session, execute
from bench.spec import resolve

QUICK = ["budget.updates=1", "evaluation.steps=1", "evaluation.points=[]"]


def fail_when(monkeypatch, condition) -> None:
    """Every forward for which `condition(grad enabled)` holds finds no memory."""
    honest = FlowBackbone._forward

    def forward(self, *args):
        if condition(torch.is_grad_enabled()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return honest(self, *args)

    monkeypatch.setattr(FlowBackbone, "_forward", forward)


def test_training_names_its_settings(tmp_path: Path, monkeypatch) -> None:
    fail_when(monkeypatch, lambda grad: grad)
    spec = resolve("opd_analytic", ["ocr"], overrides=QUICK)
    with pytest.raises(
        BenchError,
        match=r"out of memory on cpu in training; go on .*gradient_checkpointing=true, .*as another run, a lower params\.chunk \(now 128\)",
    ):
        execute(spec, Session(tmp_path / "results"))
    spec = resolve(
        "multi_reward",
        ["ocr"],
        overrides=[*QUICK, "compute.gradient_checkpointing=true", "params.groups=2", "params.group_size=2"],
    )
    with pytest.raises(BenchError, match=r"params\.nft\.chunk \(now 192\)") as told:
        execute(spec, Session(tmp_path / "results"))
    assert "gradient_checkpointing" not in str(told.value)


def test_evaluation_names_its_settings(tmp_path: Path, monkeypatch) -> None:
    fail_when(monkeypatch, lambda grad: not grad)
    spec = resolve("merge", ["ocr"], overrides=["evaluation.steps=1"])
    with pytest.raises(BenchError, match=r"in evaluation; .*a lower evaluation\.batch \(now 96\)"):
        execute(spec, Session(tmp_path / "results"))


def test_the_cpu_allocators_error_counts_and_others_do_not() -> None:
    spec = resolve("opd_analytic", ["ocr"])
    with pytest.raises(BenchError, match="in loading"), memory("loading", spec):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="another"), memory("loading", spec):
        raise RuntimeError("another")
