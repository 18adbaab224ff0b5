"""Precision and what is traded for memory: what changes, and above all what does not."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.api.lab import STUDENT
from bench.backbones import embeddings
from bench.backbones.adapters import Shape
from bench.backbones.embeddings import Embeddings
from bench.backbones.flow import FlowBackbone
from bench.backbones.pipeline import backbone as pipeline_backbone
from bench.backbones.sd3 import descriptor
from bench.config.compute import Compute
from bench.errors import UsageError
from tests.methods.conftest import shake
from tests.perf.test_perf import TINY

PROMPTS = ["a cat", "a small dog"]


def load(folder: Path, cache: Path | None = None, **settings) -> FlowBackbone:
    """The tiny pipeline with a student and a teacher that differ."""
    backbone = descriptor(str(folder)).load("cpu", Compute(**settings), cache)
    backbone.adapters.add(STUDENT, Shape(4, 8.0), trainable=True)
    backbone.adapters.add("teacher", Shape(4, 8.0), seed=1)
    shake(backbone, STUDENT, 0.1)
    shake(backbone, "teacher", 0.3)
    return backbone


def step(backbone: FlowBackbone) -> tuple[float, Tensor]:
    """Loss and gradient of a distillation step: the teacher looks between the student's forward and its backward."""
    x = backbone.noise(2, torch.Generator().manual_seed(0))
    conditioning = backbone.encode(PROMPTS)
    v = backbone.velocity(x, 0.7, conditioning, STUDENT, 2.0)
    with torch.no_grad():
        target = backbone.velocity(x, 0.7, conditioning, "teacher", 2.0)
    loss = (v - target).square().mean()
    loss.backward()
    gradients = [p.grad.flatten() for p in backbone.adapters.parameters(STUDENT)]
    assert all(g.dtype == torch.float32 for g in gradients)
    return float(loss.detach()), torch.cat(gradients)


def test_checkpointed_gradients_are_the_students(sd3_folder: Path) -> None:
    loss, gradient = step(load(sd3_folder))
    again_loss, again = step(load(sd3_folder, gradient_checkpointing=True))
    assert again_loss == loss
    assert torch.equal(again, gradient)
    assert gradient.norm() > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_adapters_whole_and_stays_near(sd3_folder: Path, precision: str) -> None:
    loss, gradient = step(load(sd3_folder))
    backbone = load(sd3_folder, precision=precision)
    half_loss, half = step(backbone)
    assert next(backbone.transformer.parameters()).dtype == getattr(torch, precision)
    assert backbone.vae.dtype == torch.float32
    assert half_loss == pytest.approx(loss, rel=0.1)
    assert half_loss != loss
    assert torch.cosine_similarity(half, gradient, dim=0) > 0.99


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_the_same(sd3_folder: Path) -> None:
    loss, gradient = step(load(sd3_folder))
    compiled_loss, compiled = step(load(sd3_folder, compile=True, gradient_checkpointing=True))
    assert compiled_loss == pytest.approx(loss, rel=1e-4)
    torch.testing.assert_close(compiled, gradient, rtol=1e-3, atol=1e-6)


def graphs(layers: int, monkeypatch) -> int:
    """Compiled graphs of a student's, two teachers' and the base's passes, none of which may be broken in two."""
    from torch._dynamo.utils import counters

    from tests.sd3_shapes import shape_only

    with monkeypatch.context() as patch:
        compiles = nn.Module.compile
        patch.setattr(nn.Module, "compile", lambda self: compiles(self, backend="eager"))  # only what is traced counts
        torch._dynamo.reset()
        counters.clear()
        backbone = shape_only("cpu", Compute(precision="bfloat16", compile=True), config=TINY | {"num_layers": layers})
    for name in (STUDENT, "teacher", "other"):
        backbone.adapters.add(name, Shape(4, 8.0), trainable=name == STUDENT)
    x, conditioning = backbone.noise(2, torch.Generator()), backbone.encode(PROMPTS)
    for _ in range(2):
        backbone.velocity(x, 0.7, conditioning, STUDENT).square().mean().backward()
        with torch.no_grad():
            for name in ("teacher", "other", None, STUDENT):
                backbone.velocity(x, 0.7, conditioning, name)
    assert not counters["graph_break"], dict(counters["graph_break"])
    return counters["stats"]["unique_graphs"]


def test_blocks_are_compiled_once_and_not_each_for_itself(monkeypatch) -> None:
    """Or a deep model reaches the limit on compiled versions, and then runs without them."""
    few, many = (graphs(layers, monkeypatch) for layers in (4, 7))
    assert few == many <= 32


def test_sliced_pictures_are_the_same(sd3_folder: Path) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, sliced, tiled = (load(sd3_folder, decode=how).decode(latents) for how in ("whole", "sliced", "tiled"))
    torch.testing.assert_close(sliced, whole, rtol=1e-5, atol=1e-6)
    assert tiled.shape == whole.shape


def test_a_resolution_sets_the_latents(sd3_folder: Path) -> None:
    backbone = load(sd3_folder, resolution=4)
    assert backbone.latent_shape == (4, 4, 4)
    assert step(backbone)[0] > 0
    with pytest.raises(UsageError, match=r"9 x 9 latent pixels .* do not fit: it takes multiples of 1 up to 8"):
        descriptor(str(sd3_folder)).check(Compute(resolution=9))


def test_prompts_are_encoded_once_and_never_load_encoders_again(sd3_folder: Path, tmp_path: Path, monkeypatch) -> None:
    first = load(sd3_folder, tmp_path, offload_text_encoders=True)
    encoded = first.encode(PROMPTS)
    monkeypatch.setattr(pipeline_backbone, "load_text", None)  # calling it would fail
    second = load(sd3_folder, tmp_path).encode([*PROMPTS, PROMPTS[0]])
    assert torch.equal(second["sequence"][:2], encoded["sequence"])
    assert torch.equal(second["pooled"][2], encoded["pooled"][0])
    with pytest.raises(TypeError):
        load(sd3_folder, tmp_path).encode(["a bird"])
    with pytest.raises(TypeError):  # another precision is another cache
        load(sd3_folder, tmp_path, precision="bfloat16").encode(PROMPTS)


def test_memory_for_prompts_is_bounded(sd3_folder: Path, monkeypatch) -> None:
    one = load(sd3_folder).encode(["a"])
    monkeypatch.setattr(embeddings, "MEMORY", 2 * one.bytes)
    store = Embeddings(None, torch.device("cpu"))
    for prompt in "abc":
        store.put(prompt, one)
        assert store.get("a" if prompt == "b" else prompt)
    assert [prompt for prompt in "abc" if store.get(prompt)] == ["a", "c"]


def test_a_single_file_is_a_backbone(sd3_folder: Path, tmp_path: Path) -> None:
    """In Stability's own layout, beside the diffusers folder that has the rest."""
    from safetensors.torch import save_file

    home = tmp_path / "home"
    shutil.copytree(sd3_folder, home)
    folder = load(sd3_folder)
    save_file(original_layout(folder.transformer), home / "tiny.safetensors")
    shutil.rmtree(home / "transformer")
    (home / "transformer").mkdir()
    shutil.copy(sd3_folder / "transformer" / "config.json", home / "transformer")
    single = load(home / "tiny.safetensors")
    assert step(single)[0] == pytest.approx(step(folder)[0], rel=1e-6)
    assert len(descriptor(str(home / "tiny.safetensors")).fingerprint()) > 8


def original_layout(transformer) -> dict[str, Tensor]:
    """The frozen weights under Stability's names (MMDiT-X without dual attention)."""
    theirs = {
        key.replace(".base_layer", ""): value
        for key, value in transformer.state_dict().items()
        if "lora" not in key
    }  # fmt: skip
    mine = {
        "pos_embed": theirs["pos_embed.pos_embed"],
        "final_layer.linear": "proj_out",
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    }
    layers = len(transformer.transformer_blocks)
    for i in range(layers):
        ours, block = f"transformer_blocks.{i}", f"joint_blocks.{i}"
        for side, q, out, norm, ff in (
            ("x_block", ("to_q", "to_k", "to_v"), "to_out.0", "norm1", "ff"),
            ("context_block", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "norm1_context", "ff_context"),
        ):
            for kind in ("weight", "bias"):
                mine[f"{block}.{side}.attn.qkv.{kind}"] = torch.cat([theirs[f"{ours}.attn.{p}.{kind}"] for p in q])
            mine[f"{block}.{side}.adaLN_modulation.1"] = f"{ours}.{norm}.linear"
            if side == "x_block" or i < layers - 1:
                mine[f"{block}.{side}.attn.proj"] = f"{ours}.attn.{out}"
                mine[f"{block}.{side}.mlp.fc1"] = f"{ours}.{ff}.net.0.proj"
                mine[f"{block}.{side}.mlp.fc2"] = f"{ours}.{ff}.net.2"
    state = {key: value for key, value in mine.items() if isinstance(value, Tensor)}
    for key, name in mine.items():
        if isinstance(name, str):
            state |= {f"{key}.{kind}": theirs[f"{name}.{kind}"] for kind in ("weight", "bias")}
    half = lambda t: torch.cat(t.chunk(2)[::-1])  # theirs is shift before scale in the layers that end a stream
    for kind in ("weight", "bias"):
        state[f"final_layer.adaLN_modulation.1.{kind}"] = half(theirs[f"norm_out.linear.{kind}"])
        last = f"joint_blocks.{layers - 1}.context_block.adaLN_modulation.1.{kind}"
        state[last] = half(state[last])
    return {f"model.diffusion_model.{key}": value.contiguous() for key, value in state.items()}


def test_a_damaged_or_foreign_file_of_the_cache_is_written_anew(sd3_folder: Path, tmp_path: Path) -> None:
    encoded = load(sd3_folder, tmp_path).encode(PROMPTS)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    files[0].write_bytes(b"broken")
    assert torch.equal(load(sd3_folder, tmp_path).encode(PROMPTS)["sequence"], encoded["sequence"])
    shutil.copy(files[0], files[1])  # as if two prompts had one name
    again = load(sd3_folder, tmp_path)
    assert torch.equal(again.encode(PROMPTS)["sequence"], encoded["sequence"])


def test_files_that_are_no_checkpoint_are_said_to_be(sd3_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(sd3_folder, tmp_path, dirs_exist_ok=True)
    save_file({"something": torch.zeros(2)}, tmp_path / "else.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    for name in ("else", "broken"):
        with pytest.raises(UsageError, match="is not a valid SD3 checkpoint"):
            descriptor(str(tmp_path / f"{name}.safetensors")).load("cpu")
