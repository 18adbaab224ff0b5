"""Pipelines and scorers whose folders lack something: one line that names it, and no made-up part in its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.backbones.sd3 import descriptor
from bench.errors import BenchError, DamagedError
from bench.weights import load_frozen


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


def refusal(call: Callable[[], object], kind: type[BenchError] = BenchError) -> str:
    """What is said, on one line, and of a folder never that a licence is to be accepted."""
    with pytest.raises(kind) as refused:
        call()
    said = str(refused.value)
    assert "\n" not in said
    assert "licence" not in said
    assert "hub" not in said
    return said


def drawn(folder: Path, cache: Path | None = None) -> torch.Tensor:
    return descriptor(str(folder)).load("cpu", cache=cache).encode(["a cat"]).sequence


@pytest.mark.parametrize("shape", [False, True], ids=["missing", "another shape"])
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_tensor_that_is_not_in_a_pipeline_is_not_made_up(pipeline: Path, tmp_path: Path, part: str, shape) -> None:
    name = spoil(pipeline / part, shape)
    said = refusal(lambda: drawn(pipeline, tmp_path / "cache"), DamagedError)
    assert str(pipeline / part) in said
    assert name in said
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


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
