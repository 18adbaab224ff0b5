"""Files that were downloaded instead of weights, and checkpoints that hold more than tensors."""

import argparse
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.errors import BenchError, DamagedError, MissingError, UsageError
from bench.weights.checkpoints import load_checkpoint, state_dict
from bench.weights.frozen import load_frozen, load_processor, require_numbers, weights_hash
from tasks.geneval.mmdet_weights import convert as convert_mmdet
from tasks.preference.aesthetic import AestheticJudge, read_head
from tasks.preference.open_clip_weights import convert as convert_open_clip

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3714\n"
PAGES = (b"<!DOCTYPE html>\n<html><head>", b"\n  <html lang='en'>", b"\xef\xbb\xbf<!doctype HTML>", b"<?xml version='1.0'?><Error>")
STATE = {"weight": torch.arange(6.0).reshape(2, 3)}


def torch_file(path: Path, content: object = STATE, **how: bool) -> Path:
    torch.save(content, path, **how)
    return path


def stand_ins(folder: Path) -> list[tuple[Path, type[BenchError], str]]:
    """Files that hold no weights, the error they deserve, and what it says of them."""
    whole = torch_file(folder / "whole.pth").read_bytes()
    legacy = torch_file(folder / "legacy.pth", _use_new_zipfile_serialization=False).read_bytes()
    save_file(STATE, folder / "whole.safetensors")
    safe = (folder / "whole.safetensors").read_bytes()
    told = [("pointer.pth", POINTER, MissingError, r"is a Git-LFS pointer; .*\(git lfs pull\)"),
            ("pointer.safetensors", POINTER, MissingError, "is a Git-LFS pointer")]
    told += [(f"page{i}.pth", page, DamagedError, "is a web page") for i, page in enumerate(PAGES)]
    told += [
        ("page.safetensors", PAGES[0], DamagedError, "is a web page"),
        ("empty.pth", b"", DamagedError, "is empty"),
        ("empty.safetensors", b"", DamagedError, "is empty"),
        ("zeros.pth", bytes(4096), DamagedError, "begins with zeros"),
        ("half.pth", whole[: len(whole) // 2], DamagedError, "is truncated"),
        ("start.pth", whole[:10], DamagedError, "is truncated"),
        ("end.pth", whole[:-1], DamagedError, "is truncated"),
        ("legacy-half.pth", legacy[: len(legacy) // 2], DamagedError, "is truncated"),
        ("legacy-end.pth", legacy[:-3], DamagedError, "is truncated"),
        ("half.safetensors", safe[: len(safe) // 2], DamagedError, "is truncated"),
        ("end.safetensors", safe[:-1], DamagedError, "is truncated"),
        ("short.safetensors", safe[:5], DamagedError, "is truncated"),
        ("torch.safetensors", whole, DamagedError, "not in safetensors format"),
        ("garbage.safetensors", b"\x02\0\0\0\0\0\0\0{]", DamagedError, "not in safetensors format"),
        ("text.pth", b"Entry not found", DamagedError, "is text that begins with 'Entry not found'"),
        ("json.pth", b'{"error": "gone"}', DamagedError, "is text that begins with"),
        ("random.pth", np.random.default_rng(0).bytes(3000), DamagedError, "not in torch's format"),
    ]  # fmt: skip
    for name, content, _, _ in told:
        (folder / name).write_bytes(content)
    (folder / "folder.pth").mkdir()
    found = [(folder / name, kind, said) for name, _, kind, said in told]
    return [
        *found,
        (folder / "folder.pth", DamagedError, "is a folder"),
        (folder / "nowhere.pth", MissingError, "no thing at"),
    ]


def plain(error: BaseException) -> str:
    """An error's text, which must be one line without colours or torch's advice."""
    text = str(error)
    assert "\n" not in text
    assert "\x1b" not in text
    assert "weights_only" not in text
    assert len(text) < 500
    return text


def test_what_is_no_weights_is_called_what_it_is(tmp_path: Path) -> None:
    for path, kind, said in stand_ins(tmp_path):
        with pytest.raises(kind, match=said) as refused:
            load_checkpoint(path, "thing")
        assert type(refused.value) is kind
        assert str(path) in plain(refused.value)


def test_every_reader_of_downloads_says_so(tmp_path: Path) -> None:
    readers = (
        lambda path: convert_mmdet(path, tmp_path / "out"),
        lambda path: convert_open_clip(path, tmp_path / "out"),
        read_head,
        lambda path: AestheticJudge({"head": str(path), "model": "nowhere"}).name,
    )
    for path, kind, said in stand_ins(tmp_path)[:-1]:
        named_only = "random" in path.name or "legacy" in path.name  # a name is made without reading tensors
        for reader in readers[: 3 if named_only else 4]:
            with pytest.raises(kind, match=said) as refused:
                reader(path)
            plain(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_legacy_file_that_was_cut_off_anywhere_is_called_truncated(tmp_path: Path) -> None:
    """Also in the middle of a type's name, whose beginning is a name that nobody knows."""
    whole = torch_file(tmp_path / "whole.pth", _use_new_zipfile_serialization=False).read_bytes()
    cut = tmp_path / "cut.pth"
    for size in range(1, len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(DamagedError, match="is truncated: download it again"):
            load_checkpoint(cut, "thing")


class Harmful:
    """Writes a file when it is unpickled without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_objects_are_refused_by_name_and_not_run(tmp_path: Path) -> None:
    for content, name in (
        ({"args": argparse.Namespace(x=1)}, "argparse.Namespace"),
        ({"x": Harmful(tmp_path / "harm")}, "posix.mkdir"),
    ):
        for legacy in (False, True):
            path = torch_file(tmp_path / "objects.pth", content, _use_new_zipfile_serialization=not legacy)
            with pytest.raises(DamagedError, match=f"is not a valid thing: it holds {name}; only tensors") as refused:
                load_checkpoint(path, "thing")
            plain(refused.value)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(DamagedError) as refused:
        load_checkpoint(tmp_path / "plain.pth", "thing")
    plain(refused.value)
    assert not (tmp_path / "harm").exists()


NUMBERS = (np.float64(0.4), np.float32(0.5), np.float16(0.5), np.int64(7), np.int32(7), np.uint8(7), np.bool_(True))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.dtype.name)
def test_numpy_numbers_in_a_checkpoints_notes_are_read(tmp_path: Path, number: np.generic, old: bool) -> None:
    """As numpy 2 and numpy 1, which called its module otherwise, write them."""
    path = torch_file(tmp_path / "notes.pth", {"meta": {"mAP": number}, "state_dict": STATE})
    if old:
        import zipfile

        with zipfile.ZipFile(path) as made:
            parts = {name: made.read(name) for name in made.namelist()}
        with zipfile.ZipFile(path, "w") as renamed:
            for name, content in parts.items():
                assert not name.endswith("data.pkl") or b"numpy._core.multiarray" in content
                renamed.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    content = load_checkpoint(path, "thing")
    assert content["meta"]["mAP"] == number
    assert torch.equal(state_dict(path, "thing")["weight"], STATE["weight"])


def test_checkpoints_without_tensors_are_refused(tmp_path: Path) -> None:
    for content, said in (([1, 2], "it holds list"), (torch.zeros(2), "it holds Tensor")):
        with pytest.raises(DamagedError, match=said):
            load_checkpoint(torch_file(tmp_path / "other.pth", content), "thing")
    for content in ({"meta": {}}, {"state_dict": [1]}, {"state_dict": {"a": 1}}, {}):
        with pytest.raises(DamagedError, match="it holds no tensors by name"):
            state_dict(torch_file(tmp_path / "other.pth", content), "thing")


@pytest.mark.parametrize("content", [POINTER, PAGES[0], b"", b"\x10\0\0\0\0\0\0\0{"], ids=["pointer", "page", "empty", "cut"])
def test_folders_of_stand_ins_are_said_to_be(clip_folder: Path, tmp_path: Path, content: bytes) -> None:
    from transformers import CLIPModel

    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "model.safetensors").write_bytes(content)
    kind = MissingError if content == POINTER else DamagedError
    for look in (lambda: load_frozen(CLIPModel, str(folder), "cpu", "CLIP model"), lambda: weights_hash(str(folder))):
        with pytest.raises(kind, match=r"model\.safetensors is not a valid weights file.*: it is ") as refused:
            look()
        assert type(refused.value) is kind
        plain(refused.value)


def test_a_model_of_another_kind_is_refused(clip_folder: Path, detector_folder: Path) -> None:
    from transformers import CLIPModel, Mask2FormerForUniversalSegmentation

    with pytest.raises(UsageError, match="is not a detector: its model type is 'clip', not 'mask2former'"):
        load_frozen(Mask2FormerForUniversalSegmentation, str(clip_folder), "cpu", "detector")
    with pytest.raises(UsageError, match="is not a CLIP model: its model type is 'mask2former', not 'clip'"):
        load_frozen(CLIPModel, str(detector_folder), "cpu", "CLIP model")


def test_torch_weights_in_folders_are_looked_at_too(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    load_frozen(CLIPModel, str(folder), "cpu", "CLIP model")  # the other file was not asked for
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"pytorch_model\.bin is not a valid weights file of a CLIP model: it is a Git-LFS"):
        load_frozen(CLIPModel, str(folder), "cpu", "CLIP model")
    legacy = torch_file(tmp_path / "legacy.pth", _use_new_zipfile_serialization=False).read_bytes()
    (folder / "pytorch_model.bin").write_bytes(legacy[: legacy.index(b"_rebuild_tensor") + 5])
    with pytest.raises(DamagedError, match=r"pytorch_model\.bin is not a valid weights file of a CLIP model: it is truncated"):
        load_frozen(CLIPModel, str(folder), "cpu", "CLIP model")
    (folder / "pytorch_model.bin").write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(DamagedError, match="no CLIP model at") as refused:
        load_frozen(CLIPModel, str(folder), "cpu", "CLIP model")
    plain(refused.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_stand_ins_beside_weights_are_found(clip_folder: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    assert (folder / name).is_file() or name == "preprocessor_config.json"
    (folder / name).write_bytes(POINTER)
    with pytest.raises(MissingError, match=rf"{name} is not a valid file of .*: it is a Git-LFS pointer"):
        load_processor(str(folder))


def with_value(folder: Path, to: Path, tensor: str, value: float) -> Path:
    """A copy of a model's folder with one number changed."""
    copy = Path(shutil.copytree(folder, to))
    state = load_file(copy / "model.safetensors")
    state[tensor].view(-1)[0] = value
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("value", "precision", "said"),
    [
        (float("nan"), "float32", "not finite in the tensor visual_projection.weight: download its weights again"),
        (float("-inf"), "float32", "not finite in the tensor visual_projection.weight: download its weights again"),
        (1e5, "float16", "not finite as float16 in the tensor visual_projection.weight: set its precision to float32"),
        (1e5, "bfloat16", None),
    ],
)
def test_weights_that_are_no_numbers_are_refused(value, precision, said, clip_folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = str(with_value(clip_folder, tmp_path / "clip", "visual_projection.weight", value))
    if said is None:
        load_frozen(CLIPModel, folder, "cpu", "CLIP model", precision)
        return
    with pytest.raises(DamagedError, match=said) as refused:
        load_frozen(CLIPModel, folder, "cpu", "CLIP model", precision)
    plain(refused.value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: torch.full((2, 2), torch.nan), "not finite in the tensor a"),
        (lambda: torch.tensor([0, torch.inf], dtype=torch.float16), "not finite in the tensor a"),
        (lambda: torch.zeros(2, dtype=torch.int8), "int8 in the tensor a"),
        (lambda: torch.zeros(2, dtype=torch.complex64), "complex64 in the tensor a"),
        (lambda: torch.zeros(2, dtype=torch.float8_e4m3fn), "float8_e4m3fn in the tensor a"),
    ],
)
def test_tensors_that_are_no_weights_are_named(made, said: str) -> None:
    require_numbers({"b": torch.ones(1), "empty": torch.zeros(0), "one": torch.tensor(4.6)}, "here")
    with pytest.raises(DamagedError, match=f"^here holds .*{said}"):
        require_numbers({"b": torch.ones(1), "a": made()}, "here")


def test_an_aesthetic_head_of_no_numbers_is_refused(tmp_path: Path) -> None:
    state = {f"layers.{p}.{k}": torch.zeros((1, 1) if k == "weight" else 1) for p in (0, 2, 4, 6, 7) for k in ("weight", "bias")}
    read_head(torch_file(tmp_path / "head.pth", state))
    state["layers.4.bias"][0] = torch.inf
    with pytest.raises(DamagedError, match=r"not finite in the tensor layers\.4\.bias"):
        read_head(torch_file(tmp_path / "head.pth", state))
