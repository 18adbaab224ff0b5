"""GenEval on photographs: prompts, colours asked only where needed, folders in the official layout, `bench score`."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.errors import MissingError, UsageError
from bench.layout import load, places, read, write
from bench.score_command import imported, score_folder
from bench.task import Prompt
from bench.view import view_settings
from tasks.geneval.detector import Detection
from tasks.geneval.photo import PhotoReader
from tasks.geneval.prompts import COCO
from tasks.geneval.task import GenEval


@pytest.fixture(scope="module")
def task() -> GenEval:
    return GenEval("photo")


def test_test_prompts_are_the_official_ones_four_times(task: GenEval) -> None:
    test = task.prompts("test")
    assert len(test) == 4 * 553
    assert [p.text for p in test[:8]] == [test[0].text] * 4 + [test[4].text] * 4
    assert Counter(p.stratum for p in test)["position"] == 400


def test_training_prompts_are_others_in_the_published_mix(task: GenEval) -> None:
    texts = {split: {p.text for p in task.prompts(split)} for split in ("train", "validation", "test")}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    drawn = Counter(p.stratum for p in task.sample(1700, np.random.default_rng(0)))
    assert drawn == {"position": 700, "counting": 500, "color_attr": 300, "colors": 100, "two_object": 100}


def test_without_a_detector_the_cure_is_named(task: GenEval) -> None:
    with pytest.raises(MissingError, match=r"scorers\.geneval\.converted"):
        task.score(torch.zeros(1, 3, 8, 8), task.prompts("test")[:1])


class Drawn:
    """A detector of what it is told, and a judge that notes what it is asked."""

    name = "drawn"

    def __init__(self, found: list[Detection]):
        self.found, self.asked = found, []

    def detect(self, images_BCHW, floor):
        return [self.found for _ in images_BCHW]

    def judge(self, image_CHW, objects, noun):
        self.asked.append((noun, [o.score for o in objects]))
        return ["red"] * len(objects)


def test_only_the_most_confident_objects_of_coloured_clauses_are_judged() -> None:
    mask, car, dog = np.ones((8, 8), bool), COCO.names.index("car"), COCO.names.index("dog")
    drawn = Drawn([Detection(label, (0, 0, 8, 8), s, mask) for label, s in ((car, 0.5), (car, 0.9), (dog, 0.8))])
    record = {"include": [{"class": "car", "count": 1, "color": "red"}, {"class": "dog", "count": 1}]}
    (objects,) = PhotoReader(drawn, drawn)(torch.zeros(1, 3, 8, 8), [record])
    assert [(o.score, o.colour) for o in objects["car"]] == [(0.9, "red"), (0.5, "")]
    assert [o.colour for o in objects["dog"]] == [""]
    assert [asked for asked in drawn.asked if asked[1]] == [("car", [0.9])]


@pytest.fixture
def folder(task: GenEval, tmp_path: Path) -> Path:
    images = torch.rand(8, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    prompts = task.prompts("test")[:4] + task.prompts("test")[320:324]
    for rows in (slice(0, 3), slice(3, 8)):  # a batch may end within a prompt
        write(tmp_path / "made", prompts[rows], images[rows], places(prompts)[rows])
    return tmp_path / "made"


def test_the_official_layout_is_written_and_read(task: GenEval, folder: Path) -> None:
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text()) == task.prompts("test")[320].metadata
    samples = read(folder)
    assert [str(s.path.relative_to(folder)) for s in samples[3:5]] == [
        "00000/samples/0003.png",
        "00001/samples/0000.png",
    ]
    images = torch.rand(8, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    assert float((load(samples[5].path) - images[5]).abs().max()) <= 0.5 / 255 + 1e-6
    assert [s.prompt.metadata for s in samples] == [
        p.metadata for p in task.prompts("test")[:4] + task.prompts("test")[320:324]
    ]


@pytest.mark.parametrize("damage", ["empty", "no metadata", "no JSON", "no prompt", "no picture"])
def test_other_folders_are_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    metadata = folder / "00000" / "metadata.jsonl"
    if damage == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif damage == "no metadata":
        metadata.unlink()
    elif damage == "no picture":
        (folder / "00000" / "samples" / "0000.png").write_text("nothing")
    else:
        metadata.write_text("{" if damage == "no JSON" else "{}")
    with pytest.raises(UsageError):
        [load(sample.path) for sample in read(folder)]


def test_scoring_a_folder_writes_the_evaluators_lines(folder: Path, detector_folder, clip_folder, capsys) -> None:
    settings = [f"scorers.geneval.facebook={detector_folder}", f"scorers.geneval.colours={clip_folder}"]
    score_folder("geneval", folder, settings, "photo", 3)
    shown = capsys.readouterr().out
    assert "hf-facebook-" in shown
    assert "clip-colours-" in shown
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert list(lines[0])[:6] == ["filename", "tag", "prompt", "correct", "reason", "metadata"]
    assert json.loads(lines[4]["metadata"])["tag"] == lines[4]["tag"] == "two_object"
    assert all(line["correct"] == line["official"] == (line["reason"] == "") for line in lines)
    details = [json.loads(line["details"]) for line in lines]
    assert any(details)
    for name, boxes in (item for found in details for item in found.items()):
        assert name in COCO.names
        assert all(len(box) == 5 and box[4] > 0.3 for box in boxes)
    score_folder("geneval", folder / "results.jsonl", [], "photo", 3)
    assert "made elsewhere" in capsys.readouterr().out


def test_results_made_elsewhere_are_summarised_as_the_official_script_does(tmp_path: Path) -> None:
    """Overall is the unweighted mean of the tags' means over pictures; a prompt counts if any of its pictures does."""
    rows = [("a", "p", True), ("a", "p", False), ("a", "q", False), ("a", "q", False), ("b", "r", True)]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps({"tag": t, "prompt": p, "correct": c}) + "\n" for t, p, c in rows))
    found = imported(path, "geneval")
    assert found.estimate().value == pytest.approx((0.25 + 1) / 2)
    assert found.rows["official"].mean() == pytest.approx(0.4)
    assert found.rows["any picture of the prompt"].tolist() == [1, 1, 0, 0, 1]
    path.write_text("not json")
    with pytest.raises(UsageError, match=r"is no results\.jsonl"):
        imported(path, "geneval")


def test_settings_of_the_scorer_are_checked() -> None:
    assert view_settings(["scorers.geneval.facebook=x"], ("geneval",), ("scorers",), "photo").scorers == {
        "geneval": {"facebook": "x"}
    }
    for wrong, said in (
        ("scorers.geneval.face=x", "did you mean 'facebook'"),
        ("scorers.ocr.engine=x", "ocr"),
        ("sampler.steps=3", "scorers.geneval"),
        ("scorers.geneval=x", "scorers.geneval"),
    ):
        with pytest.raises(UsageError, match=said):
            view_settings([wrong], ("geneval",), ("scorers",), "photo")


def test_a_picture_that_cannot_be_scored_is_counted_not_zero(folder: Path, monkeypatch, capsys) -> None:
    honest = GenEval.score

    def failing(self, images_BCHW, prompts):
        scores = honest(self, images_BCHW, prompts)
        scores.rewards[0] = float("nan")
        return scores

    monkeypatch.setattr(GenEval, "reader", property(lambda self: lambda images, records: [{} for _ in images]))
    monkeypatch.setattr(GenEval, "score", failing)
    monkeypatch.setattr(sys, "argv", ["bench", "score", "geneval", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert "1 of 8 pictures could not be scored" in captured.err
    assert "7 pictures" in captured.out


def test_a_prompt_without_metadata_keeps_its_text(tmp_path: Path) -> None:
    write(tmp_path, [Prompt("a <b>& \u05d0 \U0001f600", "sign")], torch.zeros(1, 3, 8, 8), [(0, 0)])
    (sample,) = read(tmp_path)
    assert (sample.prompt.text, sample.prompt.stratum) == ("a <b>& \u05d0 \U0001f600", "sign")
