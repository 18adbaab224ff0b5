"""The picture that vouches for a detector's weights."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.errors import BenchError, DamagedError, UsageError
from bench.scoring.pictures import to_bytes
from tasks.geneval import canary
from tasks.geneval.detector import Mask2FormerDetector
from tasks.geneval.prompts import COCO


@pytest.fixture
def folder(detector_folder: Path, tmp_path: Path, monkeypatch) -> Path:
    """The tiny detector in a folder of its own; it is never as sure as a trained one."""
    monkeypatch.setattr(canary, "COUNTING_THRESHOLD", 0.1)
    return Path(shutil.copytree(detector_folder, tmp_path / "detector"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))
    Image.fromarray(to_bytes(image)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def detector(folder: Path) -> Mask2FormerDetector:
    return Mask2FormerDetector(str(folder), "hf-converted")


def checked(inner: Mask2FormerDetector, folder: Path) -> canary.CheckedDetector:
    return canary.CheckedDetector(inner, str(folder))


def counts(folder: Path, picture: Path) -> dict[str, int]:
    found = detector(folder).detect(canary.from_file(picture)[None], 0.1)[0]
    names = [COCO.names[d.label] for d in found]
    assert names
    return {name: names.count(name) for name in names}


def test_a_canary_notices_other_weights(folder: Path, picture: Path) -> None:
    assert checked(detector(folder), folder).name == f"{detector(folder).name}-unchecked"
    canary.keep(detector(folder), picture, counts(folder, picture), folder)
    assert checked(detector(folder), folder).name == detector(folder).name
    assert checked(detector(folder), folder).detect(torch.rand(1, 3, 32, 32), 0.3) is not None
    other = detector(folder)
    with torch.no_grad():
        other.model.class_predictor.weight.mul_(-1)
    with pytest.raises(BenchError, match=r"no longer finds the .* of its canary image"):
        checked(other, folder).detect(torch.rand(1, 3, 32, 32), 0.3)
    record = json.loads((folder / canary.RECORD).read_text())
    record[0]["box"] = [0, 0, 1, 1]
    (folder / canary.RECORD).write_text(json.dumps(record))
    with pytest.raises(BenchError, match="no longer finds"):
        checked(detector(folder), folder).detect(torch.rand(1, 3, 32, 32), 0.3)


@pytest.mark.parametrize("content", ["{", '{"class": "cat"}', "[1]", '[{"class": "cat", "box": [1, 2], "score": 1}]', "null", "[]", "{}"])
def test_a_damaged_canary_is_named(folder: Path, picture: Path, content: str) -> None:
    canary.keep(detector(folder), picture, counts(folder, picture), folder)
    record = (folder / canary.RECORD).read_text()
    (folder / canary.RECORD).write_text(content)
    with pytest.raises(DamagedError, match=r"canary\.json"):
        checked(detector(folder), folder).detect(torch.rand(1, 3, 32, 32), 0.3)
    with pytest.raises(DamagedError, match=r"canary\.json"):  # nor is the detector called a checked one
        _ = checked(detector(folder), folder).name
    (folder / canary.RECORD).write_text(record)
    (folder / canary.PICTURE).write_text("no picture")
    with pytest.raises(DamagedError, match=r"canary image .*canary\.png cannot be read"):
        checked(detector(folder), folder).detect(torch.rand(1, 3, 32, 32), 0.3)


def test_what_is_expected_must_be_seen(folder: Path, picture: Path) -> None:
    wrong = {name: count + 1 for name, count in counts(folder, picture).items()}
    with pytest.raises(BenchError, match="not the official weights"):
        canary.keep(detector(folder), picture, wrong, folder)
    assert not (folder / canary.RECORD).exists()
    with pytest.raises(UsageError, match="is not a readable image"):
        canary.keep(detector(folder), folder / "config.json", wrong, folder)


def test_expectations_are_coco_classes_with_counts(monkeypatch) -> None:
    assert canary.expectations("cat=2, stop sign=1") == {"cat": 2, "stop sign": 1}
    wanted = {"cat": 2, "tv remote": 2, "computer mouse": 1, "computer keyboard": 3}
    assert canary.expectations("cat=2,remote=2,mouse=1,keyboard=3") == wanted  # COCO's own names
    assert canary.expectations("cat=2,tv remote=2, computer mouse = 1,computer keyboard=3") == wanted
    with pytest.raises(UsageError, match="'tv remote' twice"):
        canary.expectations("remote=1,tv remote=1")
    with pytest.raises(UsageError, match="did you mean 'cat'"):
        canary.expectations("cats=1")
    for text in ("cat", "cat=x", "cat=\u00b2", "cat=-1", "unicorn=1", "", "cat=0", "cat=1,dog=00"):
        with pytest.raises(UsageError, match="COCO classes"):
            canary.expectations(text)
    from tasks.geneval import mmdet_weights

    monkeypatch.setattr(sys, "argv", ["mmdet_weights", "a.pth", "b", "--canary", "c.png"])
    with pytest.raises(UsageError, match="--objects"):
        mmdet_weights.main()
