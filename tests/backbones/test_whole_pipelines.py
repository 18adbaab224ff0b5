"""Pipelines and scorers whose folders lack something: one line that names it, and no made-up part in its place."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.backbones.pipeline.source import address_of
from bench.backbones.pipeline_files import stored_parameters, weight_files
from bench.backbones.sd3 import SD3, descriptor
from bench.config.compute import Compute
from bench.errors import BenchError, DamagedError, MissingError, UsageError
from bench.weights.frozen import load_frozen, load_processor, weights_hash
from tests.backbones.test_compute import original_layout


@pytest.fixture
def pipeline(sd3_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(sd3_folder, tmp_path / "pipeline"))


def spoil(folder: Path, shape: bool = False) -> str:
    """Take a tensor out of a model's file, or give it another shape; the tensor's name."""
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    name = sorted(state)[5]
    taken = state.pop(name)
    if shape:
        state[name] = torch.zeros(taken.numel() + 1)
    save_file(state, path, {"format": "pt"})
    return name


def changed(folder: Path, change: Callable[[dict], dict]) -> None:
    """Put a model's tensors through a change."""
    (path,) = folder.glob("*.safetensors")
    save_file(change(load_file(path)), path, {"format": "pt"})


def refusal(call: Callable[[], object], kind: type[BenchError] | tuple[type[BenchError], ...] = BenchError) -> str:
    """What is said, on one line, and of a folder never that a licence is to be accepted."""
    with pytest.raises(kind) as refused:
        call()
    said = str(refused.value)
    assert "\n" not in said
    assert "licence" not in said
    assert "hub" not in said
    return said


def drawn(folder: Path, cache: Path | None = None) -> torch.Tensor:
    return descriptor(str(folder)).load("cpu", cache=cache).encode(["a cat"])["sequence"]


@pytest.mark.parametrize("shape", [False, True], ids=["missing", "another shape"])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_tensor_that_is_not_in_a_pipeline_is_not_made_up(pipeline: Path, tmp_path: Path, part: str, shape) -> None:
    name = spoil(pipeline / part, shape)
    said = refusal(lambda: drawn(pipeline, tmp_path / "cache"), DamagedError)
    assert str(pipeline / part) in said
    assert name in said
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "block", ["pos_embed", "x_embedder.proj.bias", "joint_blocks.1.x_block.mlp.fc1.weight", "joint_blocks.1."]
)
def test_a_tensor_that_is_not_in_a_single_file_is_not_made_up(pipeline: Path, block: str) -> None:
    state = original_layout(descriptor(str(pipeline)).load("cpu").transformer)
    kept = {name: value for name, value in state.items() if not name.startswith(f"model.diffusion_model.{block}")}
    assert len(kept) < len(state)
    save_file(kept, pipeline / "single.safetensors")
    said = refusal(lambda: drawn(pipeline / "single.safetensors"), UsageError)
    assert str(pipeline / "single.safetensors") in said
    assert re.search(r"lacks \S+", said)


@pytest.mark.parametrize("shape", [False, True], ids=["missing", "another shape"])
@pytest.mark.parametrize("fixture", ["clip_folder", "detector_folder"])
def test_a_tensor_that_is_not_in_a_scorer_is_not_made_up(request, tmp_path: Path, fixture: str, shape: bool) -> None:
    from transformers import CLIPModel, Mask2FormerForUniversalSegmentation

    kind = CLIPModel if fixture == "clip_folder" else Mask2FormerForUniversalSegmentation
    folder = Path(shutil.copytree(request.getfixturevalue(fixture), tmp_path / "scorer"))
    load_frozen(kind, str(folder), "cpu", "scorer")
    name = spoil(folder, shape)
    said = refusal(lambda: load_frozen(kind, str(folder), "cpu", "scorer"), DamagedError)
    assert str(folder) in said
    assert name in said


def test_what_a_detector_does_not_read_may_lack(detector_folder: Path, tmp_path: Path) -> None:
    from tasks.geneval.detector import Mask2FormerDetector

    folder = Path(shutil.copytree(detector_folder, tmp_path / "detector"))
    state = load_file(folder / "model.safetensors")
    read = {name: value for name, value in state.items() if not name.startswith("criterion.")}
    assert len(read) < len(state)
    save_file(read, folder / "model.safetensors", {"format": "pt"})
    assert Mask2FormerDetector(str(folder), "detector").model


def as_words(folder: Path) -> None:
    """Save a tokenizer of tokenizer.json as vocab.json and merges.txt."""
    told = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(told["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("lacking", [None, "tokenizer.json", "vocab.json", "merges.txt"])
def test_a_missing_tokenizer_is_not_made_up(pipeline: Path, part: str, lacking: str | None) -> None:
    folder = pipeline / part
    if lacking is None:
        shutil.rmtree(folder)
    elif lacking == "tokenizer.json":
        (folder / lacking).unlink()
    else:
        as_words(folder)
        drawn(pipeline)
        (folder / lacking).unlink()
    said = refusal(lambda: drawn(pipeline), MissingError)
    assert said.startswith(f"{folder} has no {lacking or 'tokenizer.json'}: ")


def test_a_scorers_missing_tokenizer_is_not_made_up(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "tokenizer.json").unlink()
    assert str(folder) in refusal(lambda: load_processor(str(folder)), MissingError)


def test_other_merges_are_other_embeddings(pipeline: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    as_words(pipeline / "tokenizer")
    before = drawn(pipeline, cache)
    name = descriptor(str(pipeline)).fingerprint()
    vocabulary = json.loads((pipeline / "tokenizer" / "vocab.json").read_text())
    vocabulary["at</w>"] = vocabulary.pop("~")
    (pipeline / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    assert torch.equal(drawn(pipeline, cache), before)  # nothing merges yet; the fingerprint is read once a process
    (pipeline / "tokenizer" / "merges.txt").write_text("#version: 0.2\na t</w>\n")
    assert not torch.equal(drawn(pipeline, cache), before)
    assert descriptor(str(pipeline)).fingerprint() == name


def test_a_pipeline_without_such_files_keeps_its_cache(sd3_folder: Path, tmp_path: Path) -> None:
    backbone = descriptor(str(sd3_folder)).load("cpu", cache=tmp_path)
    backbone.encode(["a cat"])
    assert [p.name for p in tmp_path.iterdir()] == [f"{descriptor(str(sd3_folder)).fingerprint()}-float32"]


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\noid x\n", "<!DOCTYPE html><html>"])
@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "model_index.json", "transformer/config.json"])
def test_what_stands_in_for_json_is_called_what_it_is(pipeline: Path, name: str, content: str) -> None:
    (pipeline / name).write_text(content)
    said = refusal(lambda: descriptor(str(pipeline)))
    assert str(pipeline / name) in said
    assert "Git-LFS pointer" in said or "web page" in said


def test_pointers_are_named_before_anything_is_loaded(pipeline: Path) -> None:
    path = pipeline / "text_encoder" / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    said = refusal(lambda: descriptor(str(pipeline)).size(Compute()), MissingError)
    assert f"{path} is not a valid weights file of the text_encoder: it is a Git-LFS pointer" in said


def say(pipeline: Path, part: str, field: str, value: object) -> None:
    """Write a field of a part's config.json; "absent" takes it out."""
    path = pipeline / part / "config.json"
    told = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps({k: v for k, v in told.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        *(("transformer", "sample_size", value) for value in (None, "absent", "8", 0, -8, 1.5, True, 9)),
        ("transformer", "patch_size", 0),
        ("transformer", "pos_embed_max_size", None),
        *(("vae", "scaling_factor", value) for value in (None, "1.5", 0, float("nan"))),
        ("vae", "shift_factor", "0.06"),
        *(("vae", "block_out_channels", value) for value in (None, [], "8", 8)),
    ],
)
def test_a_configuration_that_draws_nothing_is_refused_by_its_field(pipeline: Path, part, field, value) -> None:
    say(pipeline, part, field, value)
    said = refusal(lambda: descriptor(str(pipeline)).check(Compute()), UsageError)
    assert field in said
    assert part in said


def test_an_older_vae_shifts_nothing(pipeline: Path) -> None:
    pictures = []
    for value in (0.0, None):
        say(pipeline, "vae", "shift_factor", value)
        backbone = descriptor(str(pipeline)).load("cpu")
        pictures.append(backbone.decode(backbone.noise(1, torch.Generator().manual_seed(0))))
    assert torch.equal(*pictures)


def test_a_text_encoder_without_its_configuration_is_named(pipeline: Path) -> None:
    (pipeline / "text_encoder" / "config.json").unlink()
    said = refusal(lambda: drawn(pipeline), MissingError)
    assert said.startswith(f"{pipeline / 'text_encoder'} has no config.json; it contains model.safetensors: ")


WEIGHTS = {"transformer": "diffusion_pytorch_model", "text_encoder": "model"}


def sharded(pipeline: Path, part: str) -> list[Path]:
    """Save a part in shards, with their index; the shards."""
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection

    kind = SD3Transformer2DModel if part == "transformer" else CLIPTextModelWithProjection
    model = kind.from_pretrained(pipeline / part)
    shutil.rmtree(pipeline / part)
    model.save_pretrained(pipeline / part, max_shard_size="20KB")
    shards = sorted((pipeline / part).glob("*.safetensors"))
    assert len(shards) > 1
    return shards


@pytest.mark.parametrize("part", WEIGHTS)
def test_what_an_incomplete_part_lacks_is_named(pipeline: Path, part: str) -> None:
    folder, name = pipeline / part, f"{WEIGHTS[part]}.safetensors"
    whole = (folder / name).read_bytes()
    (folder / name).rename(folder / f"{name}.incomplete")
    said = refusal(lambda: drawn(pipeline), MissingError)
    assert f"{folder} has no {name}; it contains config.json, {name}.incomplete" in said
    (folder / f"{name}.incomplete").rename(folder / "weights.safetensors")
    assert f"{folder} has no {name}; it contains config.json, weights.s" in refusal(lambda: drawn(pipeline), MissingError)
    (folder / "weights.safetensors").rename(folder / name)

    shards = sharded(pipeline, part)
    drawn(pipeline)
    shards[0].rename(folder / "kept")
    assert f"{folder} has no {shards[0].name}; " in refusal(lambda: drawn(pipeline), MissingError)
    (folder / f"{WEIGHTS[part]}.fp16.safetensors").write_bytes(whole)
    said = refusal(lambda: drawn(pipeline), MissingError)
    assert "or remove the other weights to load the fp16 files, which are complete" in said
    (folder / "kept").rename(shards[0])
    index = folder / f"{name}.index.json"
    index.write_text('{"weight_map": 3}')
    assert str(index) in refusal(lambda: drawn(pipeline), DamagedError)
    index.unlink()
    assert f"{folder} has no {index.name}; " in refusal(lambda: drawn(pipeline), MissingError)
    for path in shards:
        path.unlink()
    (folder / f"{name}.incomplete").touch()
    drawn(pipeline)  # the whole variant alone is there
    shutil.rmtree(folder)
    said = refusal(lambda: drawn(pipeline), (MissingError, UsageError))
    assert str(pipeline) in said
    assert part in said


def test_a_scorers_folder_asks_for_no_licence(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "model.safetensors").rename(folder / "model.safetensors.incomplete")
    for look in (lambda: load_frozen(CLIPModel, str(folder), "cpu", "CLIP model"), lambda: weights_hash(str(folder))):
        assert "model.safetensors" in refusal(look, MissingError)


def as_type(name: str, kind: torch.dtype) -> Callable[[dict], dict]:
    return lambda state: state | {name: state[name].to(kind)}


WEIGHT = {
    "transformer": "transformer_blocks.0.attn.to_q.weight",
    "vae": "decoder.conv_in.weight",
    "text_encoder": "text_model.encoder.layers.0.mlp.fc1.weight",
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.int64, "I64"),
    ],
)
@pytest.mark.parametrize("part", WEIGHT)
def test_quantised_weights_are_not_taken_for_plain_ones(pipeline: Path, part: str, kind, said: str) -> None:
    changed(pipeline / part, as_type(WEIGHT[part], kind))
    for look in (lambda: descriptor(str(pipeline)).size(Compute()), lambda: drawn(pipeline)):
        assert f"holds the tensor {WEIGHT[part]} as {said}: quantised" in refusal(look, UsageError)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_a_quantised_models_configuration_says_so(pipeline: Path, part: str) -> None:
    say(pipeline, part, "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True})
    said = refusal(lambda: drawn(pipeline), UsageError)
    assert f"{pipeline / part / 'config.json'} says that the weights are quantised by bitsandbytes" in said


def test_a_quantised_scorer_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    changed(folder, as_type("text_projection.weight", torch.int8))
    load = lambda: load_frozen(CLIPModel, str(folder), "cpu", "CLIP model")
    assert "text_projection.weight as I8: quantised" in refusal(load, UsageError)
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    assert "quantised by torchao" in refusal(load, UsageError)


@pytest.fixture
def remarks():
    """What the libraries log: they say of such a tensor that it can be ignored."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).addHandler(handler)
    yield said
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).removeHandler(handler)


@pytest.mark.parametrize("part", WEIGHT)
def test_a_tensor_without_a_place_in_the_model_is_not_dropped(pipeline: Path, part: str, remarks) -> None:
    """As where a configuration has fewer layers, or no normalisation, than the weights."""
    extra = {"text_model.embeddings.position_ids": torch.arange(77)[None]} if part == "text_encoder" else {}
    changed(pipeline / part, lambda state: state | extra)
    drawn(pipeline)
    changed(pipeline / part, lambda state: state | {"extra.norm.weight": torch.ones(4)})
    said = refusal(lambda: drawn(pipeline), DamagedError)
    assert f"{pipeline / part} holds a tensor that its config.json does not describe: extra.norm.weight: use" in said
    assert not [record for record in remarks if "extra.norm.weight" in record.getMessage()]


def test_a_scorers_tensor_without_a_place_is_not_dropped(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    changed(folder, lambda state: state | {"text_model.encoder.layers.1.mlp.fc1.bias": torch.ones(24)})
    said = refusal(lambda: load_frozen(CLIPModel, str(folder), "cpu", "CLIP model"), DamagedError)
    assert "text_model.encoder.layers.1.mlp.fc1.bias" in said


LDM = (
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"), (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"down_blocks\.0\.resnets", "down.0.block"), (r"up_blocks\.0\.resnets", "up.0.block"),
    ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
    (r"to_out\.0", "proj_out"), (r"to_([qkv])", r"\1"),
)  # fmt: skip


def single_file(pipeline: Path, with_vae: bool = False) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file in Stability's layout beside the pipeline, to be written; the tensors that it would hold."""
    state = original_layout(descriptor(str(pipeline)).load("cpu").transformer)
    for name, value in load_file(pipeline / "vae" / "diffusion_pytorch_model.safetensors").items() if with_vae else ():
        for theirs, ours in LDM:
            name = re.sub(theirs, ours, name)
        state[f"first_stage_model.{name}"] = value
    return pipeline / "single.safetensors", state


def test_the_other_parts_of_a_lone_single_file_are_those_of_the_model_with_as_many_blocks(tmp_path: Path) -> None:
    for prefix in ("model.diffusion_model.joint_blocks", "transformer_blocks"):
        for blocks, known in ((24, "medium"), (38, "large"), (7, "medium")):
            names = [f"{prefix}.{block}.attn.w" for block in range(blocks)]
            if prefix == "transformer_blocks":
                names.append("time_text_embed.text_embedder.w")
            save_file({name: torch.zeros(1) for name in names}, tmp_path / "alone.safetensors")
            home = address_of(SD3, str(tmp_path / "alone.safetensors"))
            assert home == f"hub:stabilityai/stable-diffusion-3.5-{known}"


def test_a_single_file_may_hold_a_vae_and_text_encoders_in_half_a_byte(pipeline: Path) -> None:
    file, state = single_file(pipeline, with_vae=True)
    encoders = {"text_encoders.t5xxl.transformer.shared.weight": torch.zeros(4).to(torch.float8_e4m3fn)}
    save_file(state | encoders, file)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    folder, single = (descriptor(str(source)).load("cpu").decode(latents) for source in (pipeline, file))
    torch.testing.assert_close(single, folder)
    changed(pipeline / "vae", lambda old: {name: torch.zeros_like(value) for name, value in old.items()})
    assert torch.equal(descriptor(str(file)).load("cpu").decode(latents), single)  # the file's own


@pytest.mark.parametrize("name", ["model.diffusion_model.joint_blocks.0.x_block.attn.ln_q.weight", "first_stage_model.decoder.up.1.block.0.conv1.bias", "first_stage_model.quant_conv.bias", "model.diffusion_model.register"])  # fmt: skip
def test_a_single_files_tensor_without_a_place_is_not_dropped(pipeline: Path, name: str) -> None:
    file, state = single_file(pipeline, with_vae=True)
    extra = {name: torch.ones(8)}
    if "ln_q" in name:
        blocks = [
            name.replace(".0.", f".{i}.").replace("x_block", side)
            for i in (0, 1)
            for side in ("x_block", "context_block")
        ]
        extra = {block.replace("ln_q", norm): torch.ones(8) for block in blocks for norm in ("ln_q", "ln_k")}
    save_file(state | extra, file)
    assert f"{file} holds a tensor that its config.json does not describe" in refusal(lambda: drawn(file), DamagedError)


@pytest.mark.parametrize("change", ["none", "lacks", "extra", "fp8"])
def test_a_single_file_in_diffusers_layout_is_as_whole(pipeline: Path, change: str) -> None:
    state = load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    name, file = WEIGHT["transformer"], pipeline / "single.safetensors"
    taken = state.pop(name)
    more = {
        "none": {name: taken},
        "lacks": {},
        "extra": {name: taken, "vae.x": torch.ones(1)},
        "fp8": {name: taken.to(torch.float8_e5m2)},
    }
    save_file(state | more[change], file)
    if change == "none":
        torch.testing.assert_close(drawn(file), drawn(pipeline))
        return
    said = {"lacks": f"lacks the tensor {name}", "extra": "does not describe: vae.x", "fp8": f"{name} as F8_E5M2"}
    assert said[change] in refusal(lambda: drawn(file), UsageError)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "it is a LoRA adapter .*: use --adapter"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "it is a LoRA adapter .*: use --adapter"),
        ("double_blocks.0.img_attn.qkv.weight", "it holds no SD3 transformer; it holds double_blocks"),
        ("single_transformer_blocks.0.attn.to_q.weight", "it holds no SD3 transformer"),
        ("transformer.transformer_blocks.0.attn.to_q.weight", "it holds no SD3 transformer"),
    ],
)
def test_another_kind_of_file_is_told_by_its_names(pipeline: Path, name: str, said: str) -> None:
    file = pipeline / "single.safetensors"
    save_file({name: torch.ones(2, 2)}, file)
    for look in (lambda: descriptor(str(file)).size(Compute()), lambda: drawn(file)):
        assert re.search(f"single.safetensors is not a valid SD3 checkpoint: {said}", refusal(look, UsageError))


def index(pipeline: Path, **told: object) -> None:
    path = pipeline / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


def test_t5_is_left_out_only_where_the_index_says_so(pipeline: Path, tmp_path: Path) -> None:
    without = drawn(pipeline, tmp_path / "cache")
    shutil.copytree(pipeline / "text_encoder", pipeline / "text_encoder_3")  # no T5: reading it would fail
    assert torch.equal(drawn(pipeline), without)
    assert "text_encoder_3" not in descriptor(str(pipeline)).size(Compute()).frozen
    shutil.rmtree(pipeline / "text_encoder_3")
    index(pipeline, text_encoder_3=["transformers", "T5EncoderModel"], tokenizer_3=["transformers", "T5TokenizerFast"])
    said = refusal(lambda: descriptor(str(pipeline)).load("cpu", cache=tmp_path / "cache"), MissingError)
    assert f"{pipeline} has no folder text_encoder_3" in said


def test_a_text_encoder_needs_its_tokenizer(pipeline: Path) -> None:
    index(pipeline, tokenizer=[None, None])
    assert "names no tokenizer, which" in refusal(lambda: drawn(pipeline), DamagedError)


@pytest.mark.parametrize("kind", ["FluxPipeline", "WanPipeline", "StableDiffusionXLPipeline"])
def test_another_pipeline_is_not_told_to_change_its_scheduler(pipeline: Path, kind: str) -> None:
    index(pipeline, _class_name=kind)
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dynamic_shifting": True}))
    said = refusal(lambda: descriptor(str(pipeline)), UsageError)
    assert f"holds a {kind}; family sd3 runs StableDiffusion3Pipeline" in said


@pytest.mark.parametrize("part", WEIGHTS)
def test_an_index_that_cannot_be_followed_is_named(pipeline: Path, part: str) -> None:
    sharded(pipeline, part)
    path = pipeline / part / f"{WEIGHTS[part]}.safetensors.index.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"weight_map": {}}))
    assert f"{path} does not map each tensor to a file" in refusal(lambda: drawn(pipeline), DamagedError)
    path.write_text(json.dumps({"weight_map": told["weight_map"]}))
    assert f"{path} has no metadata" in refusal(lambda: drawn(pipeline), DamagedError)


@pytest.mark.parametrize("part", WEIGHTS)
def test_of_a_file_and_its_shards_those_that_are_read_are_counted(pipeline: Path, part: str) -> None:
    whole = shutil.copy(next((pipeline / part).glob("*.safetensors")), pipeline / "kept")
    shards = sharded(pipeline, part)
    parameters = stored_parameters(pipeline / part)
    single = Path(shutil.copy(whole, pipeline / part / f"{WEIGHTS[part]}.safetensors"))
    assert stored_parameters(pipeline / part) == parameters
    assert weight_files(pipeline / part) == (shards if part == "transformer" else [single])
    drawn(pipeline)
