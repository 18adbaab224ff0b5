"""Adapters of every kind that peft writes: ours computes what peft's own computes, or says which setting it cannot do."""

import json
import math
import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from peft import EvaConfig, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

from bench.backbones.adapter_config import INERT, START, Carried, lora_config
from bench.backbones.adapter_files import adapter_hash
from bench.backbones.adapters import CONFIG_FILE, WEIGHTS_FILE, Shape, read_adapter
from bench.backbones.sd3 import SD3
from bench.config.resolve import describe
from bench.errors import BenchError, MissingError, UsageError
from tests.backbones.adapter_makers import by_peft, in_peft, shaken, untouched, velocity

ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj"]
PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION}
KINDS = {
    "plain": PLAIN,
    "rank-stabilised": PLAIN | {"use_rslora": True},
    "alpha pattern": PLAIN | {"alpha_pattern": {"attn.to_q": 1, r"transformer_blocks\.1\.attn\.to_k": 31}},
    "rank pattern": PLAIN | {"rank_pattern": {"^transformer_blocks.0.attn.to_v": 3, "to_k": 7}},
    "both patterns, rank-stabilised": PLAIN
    | {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 5.5}, "use_rslora": True},
    "excluded by name": PLAIN | {"exclude_modules": ["attn.to_q"]},
    "excluded by an expression": PLAIN | {"exclude_modules": r".*blocks\.0.*to_[qk]"},
    "targets by an expression": PLAIN | {"target_modules": r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj)"},
    "every linear layer": PLAIN | {"target_modules": "all-linear"},
    "feed-forward and modulation": PLAIN
    | {"target_modules": ["ff.net.0.proj", "ff.net.2", "norm1.linear", "proj_out"]},
    "a convolution": PLAIN | {"target_modules": ["pos_embed.proj", "attn.to_q"]},
    "DoRA": PLAIN | {"use_dora": True},
    "DoRA, rank-stabilised, of a convolution": PLAIN
    | {"use_dora": True, "use_rslora": True, "target_modules": ["pos_embed.proj", "attn.to_q"]},
    "biases of its own": PLAIN | {"lora_bias": True},
    "dropout in training": PLAIN | {"lora_dropout": 0.5},
    "from the orthogonal start": PLAIN | {"init_lora_weights": "orthogonal"},
    "from the Gaussian start": PLAIN | {"init_lora_weights": "gaussian"},
    "the first block alone": PLAIN | {"layers_to_transform": [0], "layers_pattern": "transformer_blocks"},
    "the second block alone": PLAIN | {"layers_to_transform": 1, "layers_pattern": ["transformer_blocks"]},
    "from EVA": PLAIN | {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0)},
    "from MiCA": PLAIN | {"init_lora_weights": "mica"},
    "for layers that store weights the other way": PLAIN | {"fan_in_fan_out": True},
}


@pytest.fixture(params=["micro", "sd3"])
def backbone(request: pytest.FixtureRequest):
    if request.param == "micro":
        return request.getfixturevalue("micro")
    from bench.backbones.sd3 import descriptor

    return descriptor(str(request.getfixturevalue("sd3_folder"))).load("cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_ours_computes_what_pefts_own_does(backbone, tmp_path: Path, kind: str) -> None:
    base = untouched(backbone)
    folder = by_peft(base, tmp_path, **KINDS[kind])
    theirs = in_peft(base, folder)
    without = velocity(backbone, None)
    backbone.adapters.add("student", Shape(3, 5.0), seed=1, trainable=True)  # others are there already
    backbone.adapters.load("loaded", folder)
    ours = velocity(backbone, "loaded")
    assert (ours - without).abs().max() > 1e-3
    torch.testing.assert_close(ours, velocity(backbone, theirs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(velocity(backbone, "student"), without)
    torch.testing.assert_close(velocity(backbone, "loaded"), ours, rtol=0, atol=0)
    assert not any(p.requires_grad for p in backbone.adapters.parameters("loaded"))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_changes_are_those_of_pefts_merge(backbone, tmp_path: Path, kind: str) -> None:
    base = untouched(backbone)
    folder = by_peft(base, tmp_path, **KINDS[kind])
    merged = in_peft(base, folder).merge_and_unload().state_dict()
    backbone.adapters.load("loaded", folder)
    found = {
        key if key.endswith(".bias") else f"{key}.weight": v for key, v in backbone.adapters.deltas("loaded").items()
    }
    changed = {key: merged[key] - value for key, value in base.state_dict().items()}
    assert found.keys() == {key for key, change in changed.items() if change.abs().max() > 0}
    for key, delta in found.items():
        torch.testing.assert_close(delta, changed[key], rtol=1e-4, atol=1e-5)
    norm = sum(float(change.square().sum()) for change in changed.values()) ** 0.5
    assert backbone.adapters.delta_norm("loaded") == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_again_is_the_same_adapter_to_peft(micro, tmp_path: Path, kind: str) -> None:
    base = untouched(micro)
    micro.adapters.load("loaded", by_peft(base, tmp_path / "theirs", **KINDS[kind]))
    micro.adapters.save("loaded", tmp_path / "ours")
    again = velocity(micro, in_peft(base, tmp_path / "ours"))
    torch.testing.assert_close(again, velocity(micro, "loaded"), rtol=1e-5, atol=1e-5)
    micro.adapters.load("again", tmp_path / "ours")
    torch.testing.assert_close(velocity(micro, "again"), velocity(micro, "loaded"), rtol=0, atol=0)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_inside_the_base_is_refused_until_peft_has_converted_it(micro, tmp_path: Path, start: str) -> None:
    base = untouched(micro)
    model = get_peft_model(untouched(micro), LoraConfig(**PLAIN, init_lora_weights=start))
    model.peft_config["default"].init_lora_weights = True  # as peft's documentation says
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = start
    shaken(model, 0.02)
    trained = velocity(micro, model.eval())
    model.save_pretrained(tmp_path / "unconverted")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    with pytest.raises(UsageError, match=rf"init_lora_weights='{start}'.*path_initial_model_for_weight_conversion"):
        micro.adapters.load("unconverted", tmp_path / "unconverted")
    micro.adapters.load("converted", tmp_path / "converted")
    torch.testing.assert_close(velocity(micro, "converted"), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(velocity(micro, None), velocity(micro, base), rtol=0, atol=0)


REFUSED = {
    "init_lora_weights": ["pissa", "pissa_niter_4", "PiSSA", "olora", "corda", "lora_ga", "loftq", "someday"],
    "peft_type": ["LOHA", "LOKR", "ADALORA", "OFT", None, ["LORA"]],
    "bias": ["all", "lora_only"],
    "modules_to_save": [["proj_out"]],
    "trainable_token_indices": [[0, 1], {"embed": [3]}],
    "target_parameters": [["attn.to_q.weight"]],
    "layer_replication": [[[0, 1], [0, 1]]],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "alora_invocation_tokens": [[1, 2]],
    "use_qalora": [True],
    "use_bdlora": [{"target_modules_bd_a": ["attn.to_q"], "nblocks": 2}],
    "arrow_config": [{"top_k": 3}],
    "velora_config": [{"num_groups": 2}],
    "monteclora_config": [{"num_samples": 4}],
    "kasa_config": [{"beta": 1e-4}],
    "a_field_of_tomorrow": [True, "on", 3, {"scale": 2}],
    "r": ["4", 0, -1, 2.5, None, True],
    "lora_alpha": ["8", None, float("nan"), float("inf")],
    "target_modules": [None, [], "", 3, {"to_q": 1}, [1]],
    "rank_pattern": [{"to_q": 0}, {"to_q": "8"}, ["to_q"]],
    "alpha_pattern": [{"to_q": "8"}, {"to_q": None}],
    "use_rslora": ["yes", 2],
    "use_dora": ["false"],
    "layers_pattern": ["blocks"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REFUSED.items() for value in values])
def test_what_cannot_be_done_is_refused_by_its_name(micro, tmp_path: Path, field: str, value) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN)
    told = json.loads((folder / CONFIG_FILE).read_text()) | {field: value}
    (folder / CONFIG_FILE).write_text(json.dumps(told))
    with pytest.raises(UsageError, match=field) as refusal:
        micro.adapters.load("loaded", folder)
    assert CONFIG_FILE in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig])
def test_other_methods_of_peft_are_refused_by_name(micro, tmp_path: Path, kind) -> None:
    config = kind(r=2, alpha=4, target_modules=ATTENTION)
    get_peft_model(untouched(micro), config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=f"peft_type is '{config.peft_type.value}'; only LORA"):
        micro.adapters.load("loaded", tmp_path)


def test_every_field_of_the_installed_peft_is_carried_out_or_refused(tmp_path: Path) -> None:
    """A field that a newer peft adds is refused as soon as it is set, without a line of ours."""
    for field in fields(LoraConfig):
        if field.name in Carried.model_fields or field.name in INERT or field.name == START:
            continue
        with pytest.raises(UsageError, match=rf"{field.name}='set'"):
            lora_config({"target_modules": ["attn.to_q"], field.name: "set"}, "here")
    with pytest.raises(UsageError, match=f"tomorrow=1 is unknown to the installed peft {version('peft')}"):
        lora_config({"target_modules": ["attn.to_q"], "tomorrow": 1}, "here")
    for off in (None, False, "", [], {}):
        lora_config({"target_modules": ["attn.to_q"], "tomorrow": off, "bias": "none"}, "here")


def test_defaults_are_pefts_own() -> None:
    theirs, ours = LoraConfig(target_modules=["attn.to_q"]), lora_config({"target_modules": ["attn.to_q"]}, "here")
    assert ours.to_dict() == theirs.to_dict()


def test_a_byte_order_mark_is_passed_over(micro, tmp_path: Path) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN)
    (folder / CONFIG_FILE).write_bytes(b"\xef\xbb\xbf" + (folder / CONFIG_FILE).read_bytes())
    micro.adapters.load("loaded", folder)
    assert micro.adapters.delta_norm("loaded") > 0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (WEIGHTS_FILE, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git-LFS pointer"),
        (WEIGHTS_FILE, b"\n<!DOCTYPE html>\n<html>404</html>", "is a web page"),
        (WEIGHTS_FILE, b"<html lang='en'>", "is a web page"),
        (WEIGHTS_FILE, b"", "is empty"),
        (WEIGHTS_FILE, b"\x01\x02", "is not a valid adapter"),
        (CONFIG_FILE, b"version https://git-lfs.github.com/spec/v1\n", "is a Git-LFS pointer"),
        (CONFIG_FILE, b"<!doctype html>", "is a web page"),
        (CONFIG_FILE, b"", "is empty"),
        (CONFIG_FILE, b'{"r": 4', "not a LoRA configuration"),
        (CONFIG_FILE, b'{"r": \xff}', "not UTF-8"),
    ],
)
def test_what_is_no_adapter_file_is_said_plainly(micro, tmp_path: Path, file: str, content: bytes, message) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN)
    (folder / file).write_bytes(content)
    with pytest.raises(MissingError if b"git-lfs" in content else UsageError, match=message) as refusal:
        micro.adapters.load("loaded", folder)
    assert file in str(refusal.value)


@pytest.mark.parametrize("targets", [r".*attn\.(to_q", ["attn.no_such_layer"], r"nothing\.at\.all", ["ff.net.0"]])
def test_targets_that_are_not_there_are_said_to_be_so(micro, tmp_path: Path, targets) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN)
    told = json.loads((folder / CONFIG_FILE).read_text()) | {"target_modules": targets}
    (folder / CONFIG_FILE).write_text(json.dumps(told))
    with pytest.raises(UsageError, match="does not match this backbone"):
        micro.adapters.load("loaded", folder)


def test_pickles_are_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"adapter_model\.bin is a pickle"):
        read_adapter(tmp_path)


def test_the_layers_own_scale_is_that_of_merging(micro, tmp_path: Path) -> None:
    """A cut to a student's rank keeps the function of a rank-stabilised teacher with patterns."""
    folder = by_peft(untouched(micro), tmp_path, **KINDS["both patterns, rank-stabilised"])
    micro.adapters.load("teacher", folder)
    micro.adapters.add("student", Shape(8, 5.0, tuple(SD3.targets)))
    assert micro.adapters.set_deltas("student", micro.adapters.deltas("teacher")) == pytest.approx(1)
    torch.testing.assert_close(velocity(micro, "student"), velocity(micro, "teacher"), rtol=1e-4, atol=1e-4)


def test_a_merge_into_patterns_and_convolutions_uses_their_ranks(micro, tmp_path: Path) -> None:
    targets = PLAIN | {"target_modules": ["pos_embed.proj", "attn.to_q", "attn.to_k"]}
    narrow = by_peft(untouched(micro), tmp_path / "narrow", **targets)
    patterned = targets | {"r": 5, "rank_pattern": {"to_k": 6}, "alpha_pattern": {"to_q": 3}, "use_rslora": True}
    wide = by_peft(untouched(micro), tmp_path / "wide", **patterned)
    micro.adapters.load("narrow", narrow)
    micro.adapters.load("wide", wide)
    changes = micro.adapters.deltas("narrow")
    changes.pop("transformer_blocks.0.attn.to_k")
    assert micro.adapters.set_deltas("wide", changes) == pytest.approx(1)
    found = micro.adapters.deltas("wide")
    for layer, delta in found.items():
        torch.testing.assert_close(delta, changes.get(layer, torch.zeros_like(delta)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "field"), [("DoRA", "use_dora"), ("biases of its own", "lora_bias")])
def test_changes_are_not_put_where_they_do_not_fit(micro, tmp_path: Path, kind: str, field: str) -> None:
    micro.adapters.load("odd", by_peft(untouched(micro), tmp_path, **KINDS[kind]))
    micro.adapters.add("plain", Shape(4, 8.0, ("attn.to_q",)))
    with pytest.raises(UsageError, match=field):
        micro.adapters.set_deltas("odd", micro.adapters.deltas("plain"))
    with pytest.raises(UsageError, match=r"lora\.targets must include every layer"):
        micro.adapters.set_deltas("plain", micro.adapters.deltas("odd"))


def test_a_loaded_students_copies_are_like_it(micro, tmp_path: Path) -> None:
    """What `bench probe` does for methods that keep further adapters; the average of two of them is one of them."""
    micro.adapters.load("student", by_peft(untouched(micro), tmp_path, **KINDS["DoRA"]), trainable=True)
    micro.adapters.add("copy", micro.adapters.configs["student"])
    micro.adapters.load_state("copy", micro.adapters.state("student"))
    torch.testing.assert_close(velocity(micro, "copy"), velocity(micro, "student"), rtol=0, atol=0)
    assert all(p.requires_grad for p in micro.adapters.parameters("student"))
    assert any("magnitude" in key for key in micro.adapters.state("student"))


def test_the_shipped_teachers_keep_the_hashes_of_stored_records() -> None:
    known = {"geneval": "9b92d685aaa3b282", "ocr": "3cc1fea09110dbfc", "pickscore": "6a4540021970493e"}
    assert {task: adapter_hash(describe("micro").teachers / task) for task in known} == known


@pytest.mark.parametrize("rewrite", ["rank-stabilised", "an expression"])
def test_a_shipped_teacher_told_otherwise_is_the_same_teacher(micro, tmp_path: Path, rewrite: str) -> None:
    teacher = describe("micro").teachers / "geneval"
    shutil.copy(teacher / WEIGHTS_FILE, tmp_path)
    told = json.loads((teacher / CONFIG_FILE).read_text())
    if rewrite == "rank-stabilised":
        told |= {"use_rslora": True, "lora_alpha": told["lora_alpha"] / math.sqrt(told["r"])}
    else:
        told |= {"target_modules": r".*attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(told))
    micro.adapters.load("plain", teacher)
    micro.adapters.load("rewritten", tmp_path)
    torch.testing.assert_close(velocity(micro, "rewritten"), velocity(micro, "plain"), rtol=0, atol=1e-6)
    assert micro.adapters.delta_norm("rewritten") == pytest.approx(micro.adapters.delta_norm("plain"), rel=1e-6)


def test_an_adapter_whose_change_is_not_finite_is_refused_by_name(backbone, tmp_path: Path) -> None:
    by_peft(untouched(backbone), tmp_path, **PLAIN | {"lora_alpha": 1e300})
    with pytest.raises(UsageError, match=r"not finite in float32 \(lora_alpha is 1e\+300"):
        backbone.adapters.load("endless", tmp_path)


def test_a_change_that_is_not_finite_is_not_put_into_an_adapter(backbone, tmp_path: Path) -> None:
    backbone.adapters.load("mine", by_peft(untouched(backbone), tmp_path, **PLAIN))
    endless = {layer: delta * float("inf") for layer, delta in backbone.adapters.deltas("mine").items()}
    with pytest.raises(BenchError, match="not finite"):
        backbone.adapters.set_deltas("mine", endless)
