"""Adapters: switching, loading strictly, the same code on micro and on an SD3 pipeline."""

import json
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from bench.backbones.adapters import CONFIG_FILE, WEIGHTS_FILE, Shape
from bench.errors import UsageError

SHAPE = Shape(4, 8.0)


@pytest.fixture(params=["micro", "sd3"])
def backbone(request: pytest.FixtureRequest):
    if request.param == "micro":
        return request.getfixturevalue("micro")
    from bench.backbones.sd3 import descriptor

    return descriptor(str(request.getfixturevalue("sd3_folder"))).load("cpu")


def forward(backbone, adapter: str | None, guidance: float = 1.0) -> torch.Tensor:
    prompts = ["a photo of a red circle", "a photo of two stars"]
    x = backbone.noise(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.velocity(x, 0.7, backbone.encode(prompts), adapter, guidance)


def shake(backbone, name: str) -> None:
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in backbone.adapters.parameters(name):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_new_adapter_equals_the_base_and_two_adapters_differ(backbone) -> None:
    base = forward(backbone, None)
    backbone.adapters.add("student", SHAPE, seed=1, trainable=True)
    torch.testing.assert_close(forward(backbone, "student"), base)
    backbone.adapters.add("teacher", SHAPE, seed=2)
    shake(backbone, "teacher")
    assert not torch.allclose(forward(backbone, "teacher"), base)
    torch.testing.assert_close(forward(backbone, "student"), base)
    torch.testing.assert_close(forward(backbone, None), base)


def test_only_the_trainable_adapter_gets_gradients(backbone) -> None:
    backbone.adapters.add("student", SHAPE, trainable=True)
    backbone.adapters.add("teacher", SHAPE)
    trains = {key for key, p in backbone.named_parameters() if p.requires_grad}
    assert trains
    assert all("lora_" in key and ".student." in key for key in trains)
    x = backbone.noise(1, torch.Generator().manual_seed(0))
    backbone.velocity(x, 0.5, backbone.encode(["a photo of a star"]), "student").square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.adapters.parameters("student"))
    assert all(p.grad is None for p in backbone.adapters.parameters("teacher"))


def test_fast_switch_equals_the_public_call(backbone) -> None:
    for name in ("one", "two"):
        backbone.adapters.add(name, SHAPE, seed=3)
        shake(backbone, name)
    fast = forward(backbone, "one")
    forward(backbone, "two")
    for layer in backbone.transformer.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(True)
            layer.set_adapter(["one"], inference_mode=True)
    backbone.adapters._current = "one"
    torch.testing.assert_close(forward(backbone, "one"), fast, rtol=0, atol=0)


def test_guidance_doubles_evaluations_and_mixes_with_the_empty_prompt(backbone) -> None:
    before = sum(backbone.meter.nfe.values())
    cond = forward(backbone, None)
    assert sum(backbone.meter.nfe.values()) - before == 2
    strong = forward(backbone, None, 3.0)
    assert sum(backbone.meter.nfe.values()) - before == 6
    x = backbone.noise(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        empty = backbone.velocity(x, 0.7, backbone.encode(["", ""]), None)
    torch.testing.assert_close(strong, empty + 3 * (cond - empty), rtol=1e-3, atol=1e-4)


def test_saved_adapter_loads_exactly_and_into_peft(backbone, tmp_path: Path) -> None:
    backbone.adapters.add("teacher", SHAPE, seed=4)
    shake(backbone, "teacher")
    backbone.adapters.save("teacher", tmp_path)
    backbone.adapters.load("again", tmp_path)
    torch.testing.assert_close(forward(backbone, "again"), forward(backbone, "teacher"), rtol=0, atol=0)
    assert backbone.adapters.delta_norm("again") > 0
    keys = load_file(tmp_path / WEIGHTS_FILE).keys()
    assert all(key.startswith("base_model.model.transformer_blocks") for key in keys)


def _drop_a_key(folder: Path) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    state.pop(next(iter(state)))
    save_file(state, folder / WEIGHTS_FILE)


def _corrupt(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"not safetensors")


def _wrong_rank(folder: Path) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text()) | {"r": 8}
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def _not_finite(folder: Path) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    state[next(iter(state))].fill_(float("nan"))
    save_file(state, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_a_key, "1 missing"),
        (_corrupt, "is not a valid adapter"),
        (_wrong_rank, "has shape"),
        (_not_finite, "not finite"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), "is missing"),
        (lambda folder: (folder / CONFIG_FILE).write_text("[]"), "not a LoRA configuration"),
    ],
)
def test_damaged_adapters_are_refused(micro, tmp_path: Path, damage, message: str) -> None:
    micro.adapters.add("teacher", SHAPE)
    micro.adapters.save("teacher", tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message):
        micro.adapters.load("again", tmp_path)


def test_decode_gives_pictures(backbone) -> None:
    images = backbone.decode(backbone.noise(2, torch.Generator().manual_seed(0)))
    assert images.shape[:2] == (2, 3)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize(
    ("target", "near"),
    [("attn.to_qq", "did you mean 'attn.to_q'"), ("x", "known: "), ("attn", "known: "), ("o_q", "attn.to_q"), ("", "known: ")],
)
def test_layers_that_are_not_there_are_refused_with_the_nearest(backbone, target: str, near: str) -> None:
    for _ in range(2):  # also where layers have an adapter already
        with pytest.raises(UsageError, match=r"unknown layer in lora\.targets") as refused:
            backbone.adapters.add("student", Shape(4, 8.0, ("attn.to_k", target)))
        assert near in str(refused.value) and "lora_A" not in str(refused.value)
        backbone.adapters.add("other", Shape(4, 8.0, ("attn.to_k", "ff.net.2", "pos_embed.proj")))
