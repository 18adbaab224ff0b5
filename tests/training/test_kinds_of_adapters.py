"""Students with other adapters than plain LoRA: they train, resume to the bit, load elsewhere and cost what is predicted."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.config.resolve import describe, resolve
from bench.config.spec import LoraSpec
from bench.errors import BenchError, UsageError
from bench.training.execute import Session, execute
from methods.opd_analytic import OpdAnalytic
from tests.methods.conftest import shake
from tests.tiny_pipelines import PIPELINES

KINDS = {
    "dora": ["lora.dora=true"],
    "rank-stabilised": ["lora.rank_stabilised=true"],
    "ranks": ['lora.ranks={"attn.to_q": 8}', 'lora.alphas={"attn.to_q": 4}'],
}


def spec_of(*more: str):
    settings = [
        "budget.updates=2", "ema.every=1", "checkpoint_every=1", "evaluation.steps=1", "evaluation.points=[]",
        "evaluation.split=validation", "params.trajectories=2", "lora.rank=4", "lora.alpha=8",
    ]  # fmt: skip
    return resolve("opd_analytic", ["ocr"], overrides=[*settings, *more])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    spec = spec_of(*KINDS[kind])
    whole = execute(spec, Session(tmp_path / "whole"))
    true = OpdAnalytic.after_update

    def fail_second(self, lab) -> None:
        if lab.step == 1:
            raise BenchError("the power went")
        true(self, lab)

    with monkeypatch.context() as patch:
        patch.setattr(OpdAnalytic, "after_update", fail_second)
        with pytest.raises(BenchError, match="the power went"):
            execute(spec, Session(tmp_path / "cut"))
    assert execute(spec, Session(tmp_path / "cut"))["models"] == whole["models"]
    backbone = describe("micro").load("cpu", spec.compute)
    for name in ("whole", "cut"):
        backbone.adapters.load(name, tmp_path / name / whole["folder"] / "adapter")
    changed = backbone.adapters.parameters("whole")
    assert backbone.adapters.delta_norm("whole") > 0
    assert all(map(torch.equal, changed, backbone.adapters.parameters("cut")))
    predicted = sum(p.numel() for p in changed)
    assert predicted == sum(p.numel() for p in _added(backbone, spec.lora))


def _added(backbone, lora: LoraSpec) -> list[torch.nn.Parameter]:
    backbone.adapters.add("fresh", Shape.of(lora))
    return backbone.adapters.parameters("fresh")


@pytest.mark.parametrize("kind", KINDS)
def test_peft_applies_the_same_change(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, kind: str) -> None:
    """With stock peft around stock diffusers' network, the adapter's folder gives the same velocities."""
    from diffusers import SD3Transformer2DModel

    tiny = PIPELINES["sd3"]
    folder = tiny.folder(tmp_path_factory)
    spec = resolve("single_task", ["ocr"], backbone=str(folder), overrides=["lora.rank=4", "lora.alpha=8", *KINDS[kind]])
    backbone = describe(str(folder)).load("cpu")
    backbone.adapters.add(STUDENT, Shape.of(spec.lora), trainable=True)
    shake(backbone, STUDENT)
    backbone.adapters.save(STUDENT, tmp_path, base=str(folder))
    x = backbone.noise(2, torch.Generator().manual_seed(0))
    conditioning = backbone.encode(["a cup", "two dogs"])
    with torch.no_grad():
        ours, base = (backbone.velocity(x, 0.5, conditioning, adapter) for adapter in (STUDENT, None))
        network = PeftModel.from_pretrained(SD3Transformer2DModel.from_pretrained(folder / "transformer"), tmp_path)
        theirs = network(
            hidden_states=x, timestep=torch.full((2,), 500.0), encoder_hidden_states=conditioning["sequence"],
            pooled_projections=conditioning["pooled"], return_dict=False,
        )[0]  # fmt: skip
    assert (ours - base).abs().max() > 1e-3
    assert torch.allclose(ours, theirs, atol=1e-5)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.get("use_dora", False) == (kind == "dora")
    assert config.get("use_rslora", False) == (kind == "rank-stabilised")


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_count_the_kind(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    folder = str(PIPELINES["sd3"].folder(tmp_path_factory))
    spec = resolve("single_task", ["ocr"], backbone=folder, overrides=["lora.rank=4", *KINDS[kind]])
    size, backbone = describe(folder).size(spec.compute), describe(folder).load("cpu")
    assert size.student(Shape.of(spec.lora)) == sum(p.numel() for p in _added(backbone, spec.lora))
    plain = size.training(1, Shape(4, 64.0), spec.compute)
    own = size.training(1, Shape.of(spec.lora), spec.compute)
    # A rank that changes which of two ways to multiply is less work may also lower the cost.
    assert own.forward > plain.forward if kind == "dora" else (own.forward == plain.forward) == (kind != "ranks")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (['lora.ranks={"attn.to_z": 8}'], r"layer in lora.ranks 'attn.to_z'"),
        (['lora.alphas={"proj_out": 8}'], r"layer in lora.alphas 'proj_out'"),
    ],
)
def test_layers_without_an_adapter_have_no_rank(tmp_path: Path, said: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        execute(spec_of(*said), Session(tmp_path))


def test_what_needs_plain_lora_refuses_others() -> None:
    drawn = ["params.preference=drawn", "params.divisions=2", "params.batches=mixed", "lora.rank=4"]
    with pytest.raises(UsageError, match="cannot be used with another kind of adapter than plain LoRA"):
        resolve("opd_analytic", ["ocr", "geneval"], overrides=[*drawn, "lora.dora=true"])


def test_settings_of_plain_lora_leave_a_run_s_name() -> None:
    plain = spec_of().digest("")
    assert spec_of("lora.dora=false", "lora.ranks={}").digest("") == plain
    assert len({plain, *(spec_of(*said).digest("") for said in KINDS.values())}) == 4
