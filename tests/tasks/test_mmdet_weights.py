"""The detector's conversion: a random checkpoint in mmdet's names and layouts gives the model it was written from."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.errors import DamagedError, UsageError
from tasks.geneval.mmdet_weights import convert, main, pixel_by_pixel

DEPTHS = (1, 1, 2, 1)


@pytest.fixture(scope="module")
def tiny():
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8, depths=list(DEPTHS), num_heads=[1, 2, 2, 4], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=64, hidden_dim=32, encoder_feedforward_dim=24,
        dim_feedforward=40, num_attention_heads=4, encoder_layers=2, decoder_layers=3, num_queries=7, num_labels=80,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def channel_by_channel(merged: Tensor) -> Tensor:
    """Patch merging's input channels as mmdet's unfold gives them: channel, then row, then column."""
    channels = merged.shape[-1] // 4
    source = [(2 * column + row) * channels + c for c in range(channels) for row in (0, 1) for column in (0, 1)]
    return merged[..., source]


def as_mmdet(hub: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published transformers state dict in mmdet 2.x's names and layouts, module by module."""
    state: dict[str, Tensor] = {}

    def put(target: str, source: str, parts: tuple[str, ...] = ("weight", "bias")) -> None:
        for part in parts:
            state[f"{target}.{part}"] = hub[f"{source}.{part}"]

    def fuse(target: str, sources: list[str]) -> None:
        for part in ("weight", "bias"):
            state[target + part] = torch.cat([hub[f"{source}.{part}"] for source in sources])

    swin, pixels, queries = (f"model.{m}" for m in (
        "pixel_level_module.encoder", "pixel_level_module.decoder", "transformer_module"))  # fmt: skip
    put("backbone.patch_embed.projection", f"{swin}.embeddings.patch_embeddings.projection")
    put("backbone.patch_embed.norm", f"{swin}.embeddings.norm")
    for i, depth in enumerate(DEPTHS):
        put(f"backbone.norm{i}", f"{swin}.hidden_states_norms.stage{i + 1}")
        for j in range(depth):
            to, of = f"backbone.stages.{i}.blocks.{j}", f"{swin}.encoder.layers.{i}.blocks.{j}"
            put(f"{to}.norm1", f"{of}.layernorm_before")
            put(f"{to}.norm2", f"{of}.layernorm_after")
            fuse(f"{to}.attn.w_msa.qkv.", [f"{of}.attention.self.{n}" for n in ("query", "key", "value")])
            put(f"{to}.attn.w_msa.proj", f"{of}.attention.output.dense")
            put(f"{to}.ffn.layers.0.0", f"{of}.intermediate.dense")
            put(f"{to}.ffn.layers.1", f"{of}.output.dense")
            table = "relative_position_bias_table"
            state[f"{to}.attn.w_msa.{table}"] = hub[f"{of}.attention.self.{table}"]
            state[f"{to}.attn.w_msa.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
        if i < len(DEPTHS) - 1:
            for part in ("reduction.weight", "norm.weight", "norm.bias"):
                merged = hub[f"{swin}.encoder.layers.{i}.downsample.{part}"]
                state[f"backbone.stages.{i}.downsample.{part}"] = channel_by_channel(merged)
    head = "panoptic_head"
    for i in range(3):
        put(f"{head}.pixel_decoder.input_convs.{i}.conv", f"{pixels}.input_projections.{i}.0")
        put(f"{head}.pixel_decoder.input_convs.{i}.gn", f"{pixels}.input_projections.{i}.1")
    for to, of in (("lateral_convs", "adapter_1"), ("output_convs", "layer_1")):
        put(f"{head}.pixel_decoder.{to}.0.conv", f"{pixels}.{of}.0", ("weight",))
        put(f"{head}.pixel_decoder.{to}.0.gn", f"{pixels}.{of}.1")
    put(f"{head}.pixel_decoder.mask_feature", f"{pixels}.mask_projection")
    state[f"{head}.pixel_decoder.level_encoding.weight"] = hub[f"{pixels}.level_embed"]
    for i in range(2):
        to, of = f"{head}.pixel_decoder.encoder.layers.{i}", f"{pixels}.encoder.layers.{i}"
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            put(f"{to}.attentions.0.{name}", f"{of}.self_attn.{name}")
        put(f"{to}.ffns.0.layers.0.0", f"{of}.fc1")
        put(f"{to}.ffns.0.layers.1", f"{of}.fc2")
        put(f"{to}.norms.0", f"{of}.self_attn_layer_norm")
        put(f"{to}.norms.1", f"{of}.final_layer_norm")
    for i in range(2):  # cross-attention comes first
        to, of = f"{head}.transformer_decoder.layers.{i}", f"{queries}.decoder.layers.{i}"
        for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
            state[f"{to}.attentions.0.attn.{part}"] = hub[f"{of}.cross_attn.{part}"]
        fuse(f"{to}.attentions.1.attn.in_proj_", [f"{of}.self_attn.{n}_proj" for n in "qkv"])
        put(f"{to}.attentions.1.attn.out_proj", f"{of}.self_attn.out_proj")
        for n, norm in enumerate(("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")):
            put(f"{to}.norms.{n}", f"{of}.{norm}")
        put(f"{to}.ffns.0.layers.0.0", f"{of}.fc1")
        put(f"{to}.ffns.0.layers.1", f"{of}.fc2")
    put(f"{head}.transformer_decoder.post_norm", f"{queries}.decoder.layernorm")
    for to, of in (("query_embed", "queries_embedder"), ("query_feat", "queries_features"), ("level_embed",) * 2):
        put(f"{head}.{to}", f"{queries}.{of}", ("weight",))
    for i in range(3):
        put(f"{head}.mask_embed.{2 * i}", f"{queries}.decoder.mask_predictor.mask_embedder.{i}.0")
    put(f"{head}.cls_embed", "class_predictor")
    state[f"{head}.loss_cls.class_weight"] = torch.ones(81)
    return state


@pytest.fixture(scope="module")
def mmdet_state(tiny, tmp_path_factory) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("hub")
    tiny.save_pretrained(folder)
    hub = load_file(folder / "model.safetensors")
    state = as_mmdet(hub)
    unread = {
        key for key in hub if "criterion" not in key and not re.search(r"encoder\.layernorm|swin\.layernorm", key)
    }
    assert sum(v.numel() for k, v in state.items() if "index" not in k and "loss" not in k) == sum(
        hub[key].numel() for key in unread
    )
    return state


def test_converted_checkpoint_gives_equal_logits(tiny, mmdet_state, tmp_path: Path) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    checkpoint = tmp_path / "mask2former.pth"
    torch.save({"meta": {"mmdet_version": "2.25.0", "CLASSES": ("person",)}, "state_dict": mmdet_state}, checkpoint)
    convert(checkpoint, tmp_path / "converted")
    model = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "converted").eval()
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = model(pixel_values=pixels), tiny(pixel_values=pixels)
    assert torch.equal(ours.class_queries_logits, theirs.class_queries_logits)
    assert torch.equal(ours.masks_queries_logits, theirs.masks_queries_logits)


def as_version_3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as mmdet 3's modules name them: cross_attn, self_attn and ffn where 2.x has lists."""
    pixels, queries = ("panoptic_head.pixel_decoder.encoder", "panoptic_head.transformer_decoder")

    def newer(key: str) -> str:
        if key.startswith(pixels):
            key = key.replace(".attentions.0.", ".self_attn.")
        elif key.startswith(queries):
            key = key.replace(".attentions.0.", ".cross_attn.").replace(".attentions.1.", ".self_attn.")
        return key.replace(".ffns.0.", ".ffn.") if key.startswith((pixels, queries)) else key

    return {newer(key): value for key, value in state.items()}


def test_files_of_mmdet_3_convert_to_the_same_model(mmdet_state, tmp_path: Path, capsys, monkeypatch) -> None:
    newer = as_version_3(mmdet_state)
    assert len(newer.keys() - mmdet_state.keys()) == 2 * (8 + 4) + 2 * (4 + 4 + 4)
    assert not any("attentions" in key or "ffns" in key for key in newer)
    meta = {"mmdet_version": "3.0.0", "epoch": 50, "bbox_mAP": np.float64(0.461)}
    for name, state in (("two", mmdet_state), ("three", newer)):
        torch.save({"meta": meta, "state_dict": state}, tmp_path / f"{name}.pth")
        monkeypatch.setattr(sys, "argv", ["mmdet_weights", str(tmp_path / f"{name}.pth"), str(tmp_path / name)])
        main()
        said = capsys.readouterr()
        assert ("the file is from mmdet 3; images are preprocessed as in mmdet 2.x" in said.out) == (name == "three")
        assert f"converted: {tmp_path / name}" in said.out
        assert said.err == ""
    two, three = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("two", "three"))
    assert two == three


def test_the_official_file_is_named(mmdet_state, tmp_path: Path, capsys, monkeypatch) -> None:
    official = r"mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99\.pth"
    newer = as_version_3(mmdet_state)
    del newer["panoptic_head.cls_embed.weight"]
    torch.save(newer, tmp_path / "part.pth")
    with pytest.raises(DamagedError, match=rf"part\.pth, a file of mmdet 3, does not fit .*missing: 'class_pred.*{official}"):
        convert(tmp_path / "part.pth", tmp_path / "out")
    torch.save({"backbone.conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(DamagedError, match=rf"is not a valid mmdet Mask2Former checkpoint: it lacks '.*{official}"):
        convert(tmp_path / "resnet.pth", tmp_path / "out")
    (tmp_path / "file").write_text("here already")
    torch.save(mmdet_state, tmp_path / "whole.pth")
    with pytest.raises(UsageError, match="file is a file: name a folder"):
        convert(tmp_path / "whole.pth", tmp_path / "file")
    monkeypatch.setattr(sys, "argv", ["mmdet_weights", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert re.search(official, re.sub(r"\s", "", capsys.readouterr().out))


def test_patch_merging_of_unfolded_channels(tiny) -> None:
    """mmdet's merging, transcribed (unfold, norm, linear), equals transformers' once its weights are reordered."""
    theirs = tiny.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(2, 32, generator=generator)
    reduction, x = torch.randn(16, 32, generator=generator), torch.randn(1, 8, 6, 4, generator=generator)
    unfolded = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
    expected = torch.nn.functional.layer_norm(unfolded, (32,), weight, bias) @ reduction.T
    with torch.no_grad():
        theirs.norm.weight.copy_(pixel_by_pixel(weight))
        theirs.norm.bias.copy_(pixel_by_pixel(bias))
        theirs.reduction.weight.copy_(pixel_by_pixel(reduction))
        found = theirs(x.flatten(2).transpose(1, 2), (6, 4))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state, key: state[key].fill_(torch.nan), "not finite in the tensor class_predictor.weight"),
        (lambda state, key: state.update({key: state[key].to(torch.int8)}), "int8 in the tensor class_predictor.weight"),
        (lambda state, key: state.update({key: state[key] * 1j}), "complex64 in the tensor class_predictor.weight"),
        (lambda state, key: state.update({key: state[key][:, :8]}), "of a different shape: 'class_predictor.weight'"),
    ],
)
def test_tensors_of_another_kind_are_named(mmdet_state, tmp_path: Path, change, said: str) -> None:
    state = {key: value.clone() for key, value in mmdet_state.items()}
    change(state, "panoptic_head.cls_embed.weight")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(DamagedError, match=rf"other\.pth .*{said}") as refused:
        convert(tmp_path / "other.pth", tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert "ignore_mismatched_sizes" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [8, 79, 133])
def test_a_checkpoint_of_other_classes_is_refused(mmdet_state, tmp_path: Path, count: int) -> None:
    head = {"panoptic_head.cls_embed.weight": torch.zeros(count + 1, 32), "panoptic_head.cls_embed.bias": torch.zeros(count + 1)}
    torch.save(dict(mmdet_state) | head, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=rf"other\.pth' has {count} classes; GenEval needs COCO's 80"):
        convert(tmp_path / "other.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "not a checkpoint", "garbage"])
def test_other_files_are_refused(mmdet_state, tmp_path: Path, damage: str) -> None:
    path, state = tmp_path / "other.pth", dict(mmdet_state)
    if damage == "missing":
        del state["panoptic_head.cls_embed.weight"]
    elif damage == "unknown":
        state["panoptic_head.extra.weight"] = torch.zeros(1)
    elif damage == "shape":
        state["panoptic_head.mask_embed.0.weight"] = torch.zeros(3, 3)
    if damage == "garbage":
        path.write_bytes(b"nothing of the kind")
    else:
        torch.save(state if damage != "not a checkpoint" else {"weight": torch.zeros(2)}, path)
    with pytest.raises(UsageError, match=r"other\.pth"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
