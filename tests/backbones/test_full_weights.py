"""Sets of all weights beside adapters on one network: what they compute, hold and save."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from bench.api.lab import EMA, STUDENT
from bench.backbones.adapters import Shape
from bench.backbones.full_weights import Full
from bench.config.compute import Compute
from bench.config.resolve import describe
from bench.errors import BenchError, MissingError, UsageError
from tests.methods.conftest import shake

PROMPTS = ["a photo of a red square", "a photo of two circles"]


@pytest.fixture
def inputs(micro):
    """x [2, C, h, w] and the conditioning of two prompts."""
    return micro.noise(2, torch.Generator().manual_seed(0)), micro.encode(PROMPTS)


def stock(micro, inputs, network: SD3Transformer2DModel) -> torch.Tensor:
    """A stock network's velocity."""
    x, conditioning = inputs
    return network(
        hidden_states=x, timestep=torch.full((2,), 500.0), encoder_hidden_states=conditioning["sequence"],
        pooled_projections=conditioning["pooled"], return_dict=False,
    )[0]  # fmt: skip


def same_network(micro) -> SD3Transformer2DModel:
    network = SD3Transformer2DModel.from_config(micro.transformer.config)
    network.load_state_dict(micro.transformer.state_dict())
    return network.eval()


def velocity(micro, inputs, name: str | None) -> torch.Tensor:
    x, conditioning = inputs
    return micro.velocity(x, 0.5, conditioning, name)


def test_gradients_are_those_of_the_stock_network(micro, inputs) -> None:
    network = same_network(micro)
    stock(micro, inputs, network).square().sum().backward()
    wanted = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    # An adapter on the same network, added before and after, changes nothing.
    micro.adapters.add("teacher", Shape(4, 8.0))
    micro.adapters.add(STUDENT, Full(), trainable=True)
    micro.adapters.add("other", Shape(2, 4.0))
    with torch.no_grad():
        assert torch.equal(velocity(micro, inputs, STUDENT), velocity(micro, inputs, None))
    velocity(micro, inputs, STUDENT).square().sum().backward()
    named = micro.adapters.named(STUDENT)
    assert list(named) == sorted(name for name, _ in network.named_parameters())
    found = {name: p.grad for name, p in named.items() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name
    micro.adapters.use(None)
    assert not any(p.requires_grad for p in micro.transformer.parameters())


def test_sets_and_adapters_do_not_touch_each_other(micro, inputs) -> None:
    micro.adapters.add("adapter", Shape(4, 8.0))
    shake(micro, "adapter")
    with torch.no_grad():
        before = {name: velocity(micro, inputs, name) for name in ("adapter", None)}
        for name in (STUDENT, EMA):
            micro.adapters.add(name, Full())
            shake(micro, name, 0.01)
        own = {name: velocity(micro, inputs, name) for name in (STUDENT, EMA)}
        assert not torch.equal(own[STUDENT], own[EMA])
        for _ in range(2):
            for name, value in (before | own).items():
                assert torch.equal(velocity(micro, inputs, name), value)
        micro.adapters.add_like("copy", STUDENT)
        assert torch.equal(velocity(micro, inputs, "copy"), own[STUDENT])
        shake(micro, "copy", 0.01)
        assert torch.equal(velocity(micro, inputs, STUDENT), own[STUDENT])


def test_checkpointed_blocks_are_recomputed_with_the_student(inputs) -> None:
    """A teacher is asked between the student's forward and backward pass."""
    found = []
    for checkpointing in (False, True):
        micro = describe("micro").load("cpu", Compute(gradient_checkpointing=checkpointing))
        micro.adapters.add(STUDENT, Full(), trainable=True)
        micro.adapters.add("teacher", Full())
        shake(micro, STUDENT, 0.01)
        shake(micro, "teacher", 0.01)
        value = velocity(micro, inputs, STUDENT).square().sum()
        with torch.no_grad():
            velocity(micro, inputs, "teacher")
        value.backward()
        found.append([p.grad for p in micro.adapters.parameters(STUDENT) if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 50
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max())) for a, b in zip(*found))


def test_a_saved_set_is_a_network_of_diffusers(micro, inputs, tmp_path: Path) -> None:
    micro.adapters.add("teacher", Shape(4, 8.0))  # peft renames the layers under it
    micro.adapters.add(STUDENT, Full(), trainable=True)
    shake(micro, STUDENT, 0.01)
    micro.adapters.use("teacher")
    micro.adapters.save(STUDENT, tmp_path / "model", base="anything")
    network, told = SD3Transformer2DModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        ours = velocity(micro, inputs, STUDENT)
        assert torch.allclose(stock(micro, inputs, network), ours, atol=1e-5)
        micro.adapters.load("again", tmp_path / "model")
        assert torch.equal(velocity(micro, inputs, "again"), ours)
        micro.load_model("whole", tmp_path / "model")
        assert torch.equal(velocity(micro, inputs, "whole"), ours)
    assert micro.adapters.delta_norm("again") > 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    micro.adapters.save("again", tmp_path / "twice")
    assert {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()} == first
    assert b"/" not in first["config.json"]


def test_changes_are_the_differences_and_can_be_set(micro, inputs) -> None:
    micro.adapters.add("teacher", Shape(4, 8.0))
    micro.adapters.add(STUDENT, Full())
    shake(micro, "teacher")
    assert micro.adapters.delta_norm(STUDENT) == 0
    assert micro.adapters.set_deltas(STUDENT, micro.adapters.deltas("teacher")) == 1.0
    assert micro.adapters.delta_norm(STUDENT) == pytest.approx(micro.adapters.delta_norm("teacher"), rel=1e-5)
    with torch.no_grad():
        ours, theirs = (velocity(micro, inputs, name) for name in (STUDENT, "teacher"))
    assert torch.allclose(ours, theirs, atol=1e-5)
    with pytest.raises(UsageError, match=r"no parameters that 1 changes are of \(first: nowhere\)"):
        micro.adapters.set_deltas(STUDENT, {"nowhere": torch.zeros(1)})
    layer, change = next(iter(micro.adapters.deltas("teacher").items()))
    with pytest.raises(BenchError, match="is not finite"):
        micro.adapters.set_deltas(STUDENT, {layer: change / 0})


@pytest.mark.parametrize(("field", "value"), [("qk_norm", "rms_norm"), ("caption_projection_dim", 8)])
def test_a_network_of_another_architecture_is_refused(micro, tmp_path: Path, field: str, value) -> None:
    config = dict(micro.transformer.config) | {field: value}
    SD3Transformer2DModel.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="does not match this backbone"):
        micro.adapters.load("other", tmp_path / "model")


def test_a_pipeline_s_folder_without_its_network_is_missing_something(micro, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(MissingError, match="has no folder transformer: complete the download"):
        micro.adapters.load("other", tmp_path)


def test_half_precision_trains_float32_weights(inputs) -> None:
    """Under autocast the trained weights are rounded as the frozen ones are: the velocity is the same to the bit."""
    micro = describe("micro").load("cpu", Compute(precision="bfloat16"))
    micro.adapters.add(STUDENT, Full(), trainable=True)
    with torch.no_grad():
        base, own = (velocity(micro, inputs, name) for name in (None, STUDENT))
    assert torch.equal(own, base)
    velocity(micro, inputs, STUDENT).square().sum().backward()
    parameters = micro.adapters.parameters(STUDENT)
    assert all(p.dtype == torch.float32 for p in parameters)
    assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None)
