"""LoRA files that diffusers writes: ours computes what diffusers' own loader makes of them, or says what it cannot do."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.backbones.adapter_files import adapter_hash
from bench.backbones.adapters import read_adapter
from bench.errors import BenchError, UsageError
from bench.weights.hub import DIFFUSERS_FILE, WEIGHTS_FILE
from tests.backbones.adapter_makers import by_peft, shaken, untouched, velocity
from tests.backbones.test_adapter_kinds import KINDS, PLAIN, backbone  # noqa: F401

WITH_HEADER = {kind: KINDS[kind] for kind in KINDS if kind != "biases of its own"}
OF_ONE_RANK = PLAIN | {"lora_alpha": 4}
MIXED_RANKS = OF_ONE_RANK | {"rank_pattern": {"to_k": 7, r"transformer_blocks\.1\.attn\.to_v": 2}}


def made(base, **settings) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """Tensors and configuration of an adapter, as training scripts of diffusers have them at hand."""
    model = shaken(get_peft_model(copy.deepcopy(base), LoraConfig(**settings)))
    tensors = get_peft_model_state_dict(model)
    return {k.removeprefix("base_model.model."): v.contiguous() for k, v in tensors.items()}, model.peft_config[
        "default"
    ]


def by_diffusers(folder: Path, tensors: dict, config: LoraConfig | None = None) -> Path:
    """What `save_lora_weights` writes, with the configuration in the header or, as once, without."""
    told = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()} if config else None
    StableDiffusion3Pipeline.save_lora_weights(
        folder, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=told
    )
    return folder


def in_diffusers(base, folder: Path, **arguments):
    """A copy of the base with the file loaded by diffusers, prefix and all."""
    model = copy.deepcopy(base)
    tensors, told = StableDiffusion3Pipeline.lora_state_dict(folder, return_lora_metadata=True)
    model.load_lora_adapter(tensors, metadata=told, **arguments)
    return model.eval()


def check(backbone, folder: Path, theirs) -> None:  # noqa: F811
    backbone.adapters.load("loaded", folder)
    ours, without = velocity(backbone, "loaded"), velocity(backbone, None)
    assert (ours - without).abs().max() > 1e-3
    torch.testing.assert_close(ours, velocity(backbone, theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", WITH_HEADER)
def test_a_header_says_how_strong_an_adapter_is(backbone, tmp_path: Path, kind: str) -> None:  # noqa: F811
    base = untouched(backbone)
    by_diffusers(tmp_path, *made(base, **KINDS[kind]))
    assert [path.name for path in tmp_path.iterdir()] == [DIFFUSERS_FILE]
    check(backbone, tmp_path, in_diffusers(base, tmp_path))


@pytest.mark.parametrize("settings", [PLAIN, MIXED_RANKS, KINDS["DoRA"], KINDS["biases of its own"]])
def test_without_a_header_every_layer_has_scale_one(backbone, tmp_path: Path, settings: dict) -> None:  # noqa: F811
    base = untouched(backbone)
    by_diffusers(tmp_path, made(base, **settings)[0])
    check(backbone, tmp_path, in_diffusers(base, tmp_path))


@pytest.mark.parametrize("kind", ["plain", "rank-stabilised", "rank pattern", "DoRA"])
def test_a_file_of_the_transformer_alone_has_no_prefix(micro, tmp_path: Path, kind: str) -> None:
    model = untouched(micro)
    model.add_adapter(LoraConfig(**KINDS[kind]))
    shaken(model).save_lora_adapter(tmp_path)
    theirs = untouched(micro)
    theirs.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert not any(key.startswith("transformer.") for key in load_file(tmp_path / DIFFUSERS_FILE))
    check(micro, tmp_path, theirs.eval())


@pytest.mark.parametrize("alphas", ["one", "many"])
def test_alphas_beside_the_tensors_are_their_layers(micro, tmp_path: Path, alphas: str) -> None:
    base = untouched(micro)
    tensors, _ = made(base, **MIXED_RANKS)
    layers = sorted({key.split(".lora_")[0] for key in tensors})
    told = {f"transformer.{layer}.alpha": 3.0 if alphas == "one" else 1.0 + i % 3 for i, layer in enumerate(layers)}
    prefixed = {f"transformer.{key}": value for key, value in tensors.items()}
    save_file(prefixed | {key: torch.tensor(value) for key, value in told.items()}, tmp_path / DIFFUSERS_FILE)
    theirs = untouched(micro)
    theirs.load_lora_adapter(prefixed, network_alphas=told)
    check(micro, tmp_path, theirs.eval())


@pytest.mark.parametrize("settings", [PLAIN, MIXED_RANKS])
def test_a_layer_without_an_alpha_of_its_own_has_scale_one(micro, tmp_path: Path, settings: dict) -> None:
    base = untouched(micro)
    tensors, _ = made(base, **settings)
    ranks = {key.split(".lora_")[0]: len(value) for key, value in tensors.items() if "lora_A" in key}
    prefixed = {f"transformer.{key}": value for key, value in tensors.items()}
    told = {
        f"transformer.{layer}.alpha": 1.0 if i == 0 else float(rank) for i, (layer, rank) in enumerate(ranks.items())
    }
    save_file(prefixed | {next(iter(told)): torch.tensor(1.0)}, tmp_path / DIFFUSERS_FILE)
    theirs = untouched(micro)
    theirs.load_lora_adapter(prefixed, network_alphas=told)
    check(micro, tmp_path, theirs.eval())


WRAPPED = {
    "compiled": lambda key: f"_orig_mod.{key}",
    "data-parallel": lambda key: f"module.{key}",
    "compiled layers": lambda key: key.replace("transformer_blocks.1.", "transformer_blocks.1._orig_mod."),
    "sharded": lambda key: "_fsdp_wrapped_module." + key.replace(".attn.", "._fsdp_wrapped_module.attn."),
    "in a pipeline": lambda key: f"module._orig_mod.transformer.{key}",
    "peft's own name": lambda key: re.sub(r"(lora_[AB]|lora_magnitude_vector)", r"\1.student", key),
    "peft, compiled": lambda key: f"_orig_mod.base_model.model.{key}",
    "peft in peft": lambda key: f"base_model.model.{key}",
}


@pytest.mark.parametrize("kind", ["rank pattern", "DoRA"])
@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("form", ["peft", "diffusers"])
def test_names_of_what_a_trainer_wrapped_are_read(micro, tmp_path: Path, form: str, wrapper: str, kind: str) -> None:
    base = untouched(micro)
    if form == "peft":
        file, prefix = by_peft(base, tmp_path, **KINDS[kind]) / WEIGHTS_FILE, "base_model.model."
    else:
        file, prefix = by_diffusers(tmp_path, *made(base, **KINDS[kind])) / DIFFUSERS_FILE, "transformer."
    micro.adapters.load("plain", tmp_path)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = {prefix + WRAPPED[wrapper](key.removeprefix(prefix)): value for key, value in load_file(file).items()}
    save_file(tensors, file, header)
    micro.adapters.load("wrapped", tmp_path)
    plain, wrapped = micro.adapters.state("plain"), micro.adapters.state("wrapped")
    assert plain.keys() == wrapped.keys()
    assert all(torch.equal(plain[key], wrapped[key]) for key in plain)
    torch.testing.assert_close(velocity(micro, "wrapped"), velocity(micro, "plain"), rtol=0, atol=0)


@pytest.mark.parametrize(
    "pattern",
    [r"^module\.transformer_blocks.0.attn.to_q", r"0\._orig_mod\.attn.to_q", "module.transformer_blocks.0.attn.to_q"],
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_for_wrapped_names_is_refused(micro, tmp_path: Path, field: str, pattern: str) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: {pattern: 3}}))
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(
        {key.replace(".attn.", "._orig_mod.attn."): value for key, value in tensors.items()}, folder / WEIGHTS_FILE
    )
    with pytest.raises(UsageError, match=r"the pattern .* matches such names"):
        micro.adapters.load("wrapped", folder)


def test_two_adapters_in_one_file_are_refused(micro, tmp_path: Path) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN)
    tensors = load_file(folder / WEIGHTS_FILE)
    named = {
        key.replace(".weight", f".{name}.weight"): value.clone() for key, value in tensors.items() for name in "ab"
    }
    save_file(named, folder / WEIGHTS_FILE)
    with pytest.raises(UsageError, match="more than once"):
        micro.adapters.load("two", folder)


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_of_adapters_names_them(micro, tmp_path: Path, named: bool) -> None:
    """As peft saves an adapter with a name of its own."""
    if named:
        get_peft_model(untouched(micro), LoraConfig(**PLAIN), adapter_name="student").save_pretrained(tmp_path)
    else:
        by_diffusers(tmp_path / "student", made(untouched(micro), **PLAIN)[0])
    with pytest.raises(UsageError, match=rf"no adapter at .*; give {tmp_path / 'student'}$"):
        read_adapter(tmp_path)
    assert read_adapter(tmp_path / "student")[1]


def test_the_names_of_older_files_are_known(micro, tmp_path: Path) -> None:
    base = untouched(micro)
    tensors, _ = made(base, **OF_ONE_RANK)
    old = {
        f"transformer.{k.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up')}": v for k, v in tensors.items()
    }
    save_file(old, tmp_path / DIFFUSERS_FILE)
    check(micro, tmp_path, in_diffusers(base, tmp_path))


def test_a_file_is_an_adapter_under_any_name(micro, tmp_path: Path) -> None:
    base = untouched(micro)
    by_diffusers(tmp_path, *made(base, **KINDS["rank-stabilised"]))
    file = (tmp_path / DIFFUSERS_FILE).rename(tmp_path / "style.safetensors")
    with pytest.raises(UsageError, match=r"give the file itself: .*style\.safetensors"):
        micro.adapters.load("folder", tmp_path)
    check(micro, file, in_diffusers(base, tmp_path))
    first = adapter_hash(file)
    by_diffusers(tmp_path, *made(base, **PLAIN))
    (tmp_path / DIFFUSERS_FILE).rename(file)
    assert adapter_hash(file) != first


def test_the_weights_of_a_peft_folder_stand_for_the_folder(micro, tmp_path: Path) -> None:
    folder = by_peft(untouched(micro), tmp_path, **KINDS["rank-stabilised"])
    micro.adapters.load("folder", folder)
    micro.adapters.load("file", folder / "adapter_model.safetensors")
    torch.testing.assert_close(velocity(micro, "file"), velocity(micro, "folder"), rtol=0, atol=0)
    assert adapter_hash(folder / "adapter_model.safetensors") == adapter_hash(folder)


LAYER = "transformer_blocks.0.attn.to_q"
PAIR = {f"transformer.{LAYER}.lora_A.weight": (4, 128), f"transformer.{LAYER}.lora_B.weight": (128, 4)}
REFUSED = {
    "kohya": ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 128)}, "Kohya's format"),
    "kohya of diffusers' layers": ({"lora_transformer_blocks_0_attn_to_q.alpha": ()}, "Kohya's format"),
    "kohya's halves": ({f"transformer.{LAYER}.lora_down.weight": (4, 128)}, "Kohya's format"),
    "text encoder": (PAIR | {"text_encoder.text_model.q_proj.lora_A.weight": (4, 8)}, "adapts text encoders"),
    "text encoder alone": ({"text_encoder_2.q_proj.lora_A.weight": (4, 8)}, "adapts text encoders"),
    "another part": (PAIR | {"vae.conv.lora_A.weight": (4, 8)}, "something besides the network"),
    "dora_scale": (PAIR | {f"transformer.{LAYER}.dora_scale": (128, 1)}, "dora_scale"),
    "lokr": ({f"transformer.{LAYER}.lokr_w1": (4, 4)}, "only LoRA"),
    "loha": ({f"transformer.{LAYER}.hada_w1_a": (4, 4)}, "only LoRA"),
    "half of a pair": ({f"transformer.{LAYER}.lora_A.weight": (4, 128)}, "no lora_B"),
    "a layer's alpha alone": (PAIR | {"transformer.proj_out.alpha": ()}, r"proj_out\.alpha"),
    "a layer's alpha with two values": (PAIR | {f"transformer.{LAYER}.alpha": (2,)}, r"alpha has 2 values"),
    "a layer's alpha without one": (PAIR | {f"transformer.{LAYER}.alpha": (0,)}, r"alpha has 0 values"),
    "comfyui": ({k.replace("transformer.", "diffusion_model.", 1): n for k, n in PAIR.items()}, "ComfyUI's format"),
    "peft's, without configuration": (
        {k.replace("transformer.", "base_model.model.", 1): n for k, n in PAIR.items()},
        r"in peft's format .* adapter_config\.json is missing",
    ),
    "nothing": ({}, "no lora_B"),
    "no such layer": ({k.replace("to_q", "to_z"): v for k, v in PAIR.items()}, "does not match this backbone"),
    "another width": ({k: (n + 1, m) if n > 4 else (n, m) for k, (n, m) in PAIR.items()}, "has shape"),
    "whole weights": (PAIR | {"transformer.proj_out.weight": (4, 4)}, "proj_out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_diffusers_would_drop_or_cannot_read_is_refused(micro, tmp_path: Path, case: str) -> None:
    shapes, message = REFUSED[case]
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / DIFFUSERS_FILE)
    with pytest.raises(UsageError, match=message) as refusal:
        micro.adapters.load("loaded", tmp_path)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "not a LoRA file that diffusers can read"),
        ("[1]", "not a JSON object"),
        ('{"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.bias": "all"}', "bias='all'"),
        ('{"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.init_lora_weights": "pissa"}', "pissa"),
        ('{"transformer.r": 4, "transformer.lora_alpha": "4"}', "lora_alpha"),
        ('{"transformer.r": 8, "transformer.lora_alpha": 8}', "has shape"),
    ],
)
def test_a_header_that_cannot_be_carried_out_is_refused(micro, tmp_path: Path, header: str, message: str) -> None:
    tensors = {key: torch.ones(shape) for key, shape in PAIR.items()}
    save_file(tensors, tmp_path / DIFFUSERS_FILE, {"format": "pt", "lora_adapter_metadata": header})
    with pytest.raises(UsageError, match=message):
        micro.adapters.load("loaded", tmp_path)


def test_a_scale_said_twice_is_refused(tmp_path: Path) -> None:
    tensors = {key: torch.ones(shape) for key, shape in PAIR.items()} | {
        f"transformer.{LAYER}.alpha": torch.tensor(2.0)
    }
    header = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 4})
    save_file(tensors, tmp_path / DIFFUSERS_FILE, {"lora_adapter_metadata": header})
    with pytest.raises(UsageError, match=r"both \.alpha tensors and lora_adapter_metadata"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b""])
def test_a_stand_in_for_the_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DIFFUSERS_FILE).write_bytes(content)
    with pytest.raises(BenchError, match=r"LFS pointer|web page|is empty"):
        read_adapter(tmp_path)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    save_file({key: torch.ones(shape, dtype=torch.int8) for key, shape in PAIR.items()}, tmp_path / DIFFUSERS_FILE)
    with pytest.raises(UsageError, match=r"has type torch\.int8"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model", "pytorch_lora_weights"])
def test_a_part_of_an_adapter_is_not_taken_for_it(tmp_path: Path, name: str) -> None:
    shard = tmp_path / f"{name}-00001-of-00002.safetensors"
    save_file({key: torch.ones(shape) for key, shape in PAIR.items()}, shard)
    for place in (tmp_path, shard):
        with pytest.raises(UsageError, match="one shard of an adapter") as refused:
            adapter_hash(place)
        assert "give the file itself" not in str(refused.value)
