"""GenEval on photographs: prompts, colours asked only where needed, folders in the official layout, `bench score`."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api.task import Prompt
from bench.cli.app import main
from bench.cli.score import imported, official_line, print_summary, score_folder
from bench.config.scorers import view_settings
from bench.errors import MissingError, UsageError
from bench.scoring.folders import Sample, load, places, read, write
from bench.training.evaluate import Evaluation
from tasks.geneval.detector import Detection
from tasks.geneval.photo import PhotoReader
from tasks.geneval.prompts import COCO
from tasks.geneval.rules import select
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


def test_the_judged_object_is_the_one_that_the_rules_look_at() -> None:
    """Of two equally confident cars the rules take the later; one at float32's 0.3 is none."""
    mask, car, dog = np.ones((8, 8), bool), COCO.names.index("car"), COCO.names.index("dog")
    at = lambda label, x, score: Detection(label, (x, 0, x + 8, 8), score, mask)
    drawn = Drawn([at(car, 0, 0.5), at(dog, 3, float(np.float32(0.3))), at(car, 1, 0.5), at(car, 2, 0.4)])
    record = {"tag": "colors", "include": [{"class": name, "count": 1, "color": "red"} for name in ("car", "dog")]}
    (objects,) = PhotoReader(drawn, drawn)(torch.zeros(1, 3, 8, 8), [record])
    kept = select(objects, "colors")
    assert [(o.box[0], o.colour) for o in kept["car"]] == [(1, "red"), (0, ""), (2, "")]
    assert "dog" not in kept
    assert ("car", [0.5]) in drawn.asked


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
    assert "existing verdicts" in capsys.readouterr().out


def test_results_made_elsewhere_are_summarised_as_the_official_script_does(tmp_path: Path) -> None:
    """Overall is the unweighted mean of the tags' means over pictures; of prompts, those count that have any picture
    right, each once, however many pictures it has."""
    a, b = "colors", "counting"
    rows = [(a, "p", True), (a, "p", False), (a, "q", False), (a, "q", False), (b, "r", True)]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps({"tag": t, "prompt": p, "correct": c}) + "\n" for t, p, c in rows))
    found = imported(path, "geneval")
    assert found.estimate().value == pytest.approx((0.25 + 1) / 2)
    assert found.rows["official"].mean() == pytest.approx(0.4)
    prompts = found.rows["any picture of the prompt"]
    np.testing.assert_array_equal(prompts, [1, np.nan, 0, np.nan, 1])
    assert np.nanmean(prompts) == pytest.approx(2 / 3)
    assert found.estimate("any picture of the prompt").value == pytest.approx((0.5 + 1) / 2)
    path.write_text("not json")
    with pytest.raises(UsageError, match=r"is not a results\.jsonl"):
        imported(path, "geneval")


def results(path: Path, lines: list[dict], separator: str = "\n", begin: str = "") -> Path:
    text = begin + "".join(json.dumps(line, ensure_ascii=False) + separator for line in lines)
    path.write_bytes(text.encode())
    return path


def line(number: int, correct: object, **more: object) -> dict:
    record = {"tag": "colors", "prompt": f"a red cat {number // 4}"}
    return {
        "filename": f"P/{number // 4:05d}/samples/{number % 4:04d}.png", **record, "correct": correct, "reason": "",
        "metadata": json.dumps(record), "details": "{}", **more,
    }  # fmt: skip


def test_prompts_are_weighted_alike_whatever_their_pictures(tmp_path: Path, capsys) -> None:
    """One prompt with seven wrong pictures, one with a single right one: half of the prompts, an eighth of the pictures."""
    lines = [line(0, False, filename=f"{i}.png") for i in range(7)] + [line(4, True)]
    lines += [line(8, True, tag="counting", filename="x.png")]
    score_folder("geneval", results(tmp_path / "results.jsonl", lines), [], "photo", 3)
    shown = capsys.readouterr().out
    official, prompts = (next(row for row in shown.splitlines() if name in row) for name in ("official", "any picture"))
    assert "0.1250" in official
    assert "0.5000" in prompts
    assert "0.6667" in prompts  # of three prompts


@pytest.mark.parametrize("value", ["True", "False", "1", "", float("nan"), 0.25, 2, -1, None, [True], {}, "yes"])
def test_what_is_no_verdict_is_refused_by_line(tmp_path: Path, value: object) -> None:
    path = results(tmp_path / "results.jsonl", [line(0, True), line(1, False), line(2, value)], "\n\n")
    with pytest.raises(UsageError, match=r"results\.jsonl of .*: line 5: 'correct' should be true or false, not "):
        imported(path, "geneval")


@pytest.mark.parametrize(("key", "value"), [("tag", None), ("tag", 3), ("tag", ["colors"]), ("prompt", None)])
def test_lines_without_tag_or_prompt_are_refused_by_line(tmp_path: Path, key: str, value: object) -> None:
    path = results(tmp_path / "results.jsonl", [line(0, True), line(1, False, **{key: value})])
    with pytest.raises(UsageError, match=rf"line 2: '{key}' should be text"):
        imported(path, "geneval")
    missing = line(1, False)
    del missing[key]
    with pytest.raises(UsageError, match=rf"line 1: '{key}' should be text, not null"):
        imported(results(path, [missing]), "geneval")


def test_a_picture_counts_once(tmp_path: Path, capsys) -> None:
    lines = [line(i, i % 2 == 0) for i in range(4)]
    path = results(
        tmp_path / "results.jsonl", [*lines, lines[0], line(2, True, filename="P/./00000//samples/0002.png")]
    )
    assert imported(path, "geneval").rows["official"].tolist() == [1, 0, 1, 0]
    assert "2 repeated lines count once" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"lines 2 and 5: two different verdicts on one image, 'P/00000/samples/0001\.png'"):
        imported(results(path, [*lines, line(1, True)]), "geneval")
    imported(results(path, lines), "geneval")
    assert capsys.readouterr().err == ""


NAMED = "P/00000/samples/0000.png"


@pytest.mark.parametrize(
    "name",
    [f"/x/y/{NAMED}", f"file:///x/y/{NAMED}", f"../{NAMED}", f"./{NAMED}", NAMED.replace("/", "\\"),
     "C:\\x\\" + NAMED.replace("/", "\\"), f"file:///x%20y/{NAMED}"],
)  # fmt: skip
def test_a_picture_of_another_name_counts_once(name: str, tmp_path: Path, capsys) -> None:
    more = [line(0, True, filename=f"/x/y/{NAMED}")] if name.startswith("..") else []
    path = results(tmp_path / "results.jsonl", [line(0, True), line(1, False), line(0, True, filename=name), *more])
    assert imported(path, "geneval").rows["official"].tolist() == [1, 0]
    with pytest.raises(UsageError, match="two different verdicts on one image"):
        imported(results(path, [line(0, True), line(0, False, filename=name), *more]), "geneval")


def test_pictures_of_two_folders_are_two(tmp_path: Path) -> None:
    two = [line(0, True, filename=f"/x/{NAMED}"), line(0, False, filename=f"/y/{NAMED}")]
    assert imported(results(tmp_path / "r.jsonl", two), "geneval").rows["official"].tolist() == [1, 0]
    with pytest.raises(UsageError, match=f"'{NAMED}' is ambiguous, it may be /x/{NAMED} or /y/{NAMED}"):
        imported(results(tmp_path / "r.jsonl", [*two, line(0, True)]), "geneval")


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_lines_without_a_name_are_a_picture_each(name: object, tmp_path: Path, capsys) -> None:
    path = results(tmp_path / "r.jsonl", [line(i, i % 2, filename=name) for i in range(4)])
    assert imported(path, "geneval").rows["official"].tolist() == [0, 1, 0, 1]
    assert "2 lines without a filename are equal to others" in capsys.readouterr().err


@pytest.mark.parametrize("other", [f"out/{NAMED}", f"../x/{NAMED}", f"a/b/../{NAMED}", f"../{NAMED}"])
def test_relative_names_of_one_picture_count_once(other: str, tmp_path: Path) -> None:
    short = NAMED.removeprefix("P/")
    two = [line(0, True, filename=short), line(1, False, filename="P/00000/samples/0001.png")]
    for lines in ([*two, line(0, True, filename=other)], [line(0, True, filename=other), two[1], two[0]]):
        assert sorted(imported(results(tmp_path / "r.jsonl", lines), "geneval").rows["official"]) == [0, 1]
    chain = [line(0, True, filename=name) for name in (short, NAMED, f"x/{NAMED}", f"/y/x/{NAMED}")]
    assert imported(results(tmp_path / "r.jsonl", chain), "geneval").rows["official"].tolist() == [1]
    with pytest.raises(UsageError, match=f"'{short}' is ambiguous, it may be /y/x/{NAMED} or Q/{short}"):
        imported(results(tmp_path / "r.jsonl", [*two, *chain, line(0, True, filename=f"Q/{short}")]), "geneval")


def test_other_names_that_end_alike_are_two_pictures(tmp_path: Path) -> None:
    names = ["a.png", "more/a.png", "../a.png", "samples/0000.png", "x/samples/0000.png"]
    lines = [line(i, i % 2, filename=name) for i, name in enumerate(names)]
    assert imported(results(tmp_path / "r.jsonl", lines), "geneval").rows["official"].tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("tag", ["Colors", "colour", " colors", "colors\n", ""])
def test_a_tag_that_geneval_has_not_is_refused_by_line(tag: str, tmp_path: Path) -> None:
    path = results(tmp_path / "r.jsonl", [line(0, True), line(4, True, tag=tag)])
    with pytest.raises(UsageError, match=r"unknown tag in .*r\.jsonl, line 2: .*known: color_attr, colors, counting"):
        imported(path, "geneval")


@pytest.mark.parametrize(
    ("task", "settings", "world", "said"),
    [
        (
            "pickscore",
            [],
            "photo",
            "pickscore scores folders of images; files of existing verdicts are supported for geneval only",
        ),
        ("geneval", ["scorers.geneval.colours=x"], "photo", "--set scorers.geneval.colours=x changes how images are scored"),
        ("geneval", [], "micro", "--world micro changes how images are scored"),
    ],
)
def test_verdicts_made_elsewhere_take_no_scorer(
    task: str, settings: list[str], world: str, said: str, tmp_path: Path, capsys
) -> None:
    path = results(tmp_path / "r.jsonl", [line(0, True)])
    with pytest.raises(UsageError, match=said):
        score_folder(task, path, settings, world, 8)
    assert capsys.readouterr().out == ""


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize("place", ["results.jsonl", "00000/metadata.jsonl"])
@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [(POINTER, MissingError, "git lfs pull"), (b"<!DOCTYPE html><html></html>", UsageError, "it is a web page")],
)
def test_what_stands_in_for_a_file_is_called_what_it_is(
    content: bytes, kind: type, said: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / place).write_bytes(content)
    with pytest.raises(kind, match=f"{place} is not a valid .*{said}"):
        imported(tmp_path / place, "geneval") if place == "results.jsonl" else read(tmp_path)


def test_what_bench_score_takes_is_said_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"is a pipe or a device; give a folder .*, or a results\.jsonl file"):
        score_folder("geneval", tmp_path / "pipe", [], "photo", 8)


@pytest.mark.parametrize("known", [None, "{}", {}, "", "null"])
def test_prompts_without_metadata_are_told_apart_by_their_text(known: object, tmp_path: Path) -> None:
    found = imported(results(tmp_path / "r.jsonl", [line(i, i == 0, metadata=known) for i in (0, 1, 4, 5)]), "geneval")
    np.testing.assert_array_equal(found.rows["any picture of the prompt"], [1, np.nan, 0, np.nan])


def test_metadata_in_another_order_or_as_an_object_is_the_same_prompt(tmp_path: Path) -> None:
    record = {"tag": "colors", "prompt": "a red cat 0"}
    turned = dict(reversed(record.items()))
    known = [json.dumps(record), json.dumps(turned), record, turned]
    found = imported(results(tmp_path / "r.jsonl", [line(i, True, metadata=m) for i, m in enumerate(known)]), "geneval")
    np.testing.assert_array_equal(found.rows["any picture of the prompt"], [1, np.nan, np.nan, np.nan])


def test_any_line_ends_and_separators_inside_texts_are_read(tmp_path: Path) -> None:
    odd = "a cat,\u2028oil\u0085on\x0bcanvas"
    lines = [line(0, True, prompt=odd, metadata=odd), line(4, False), line(8, 1), line(12, 0.0)]
    for begin, separator in (("", "\n"), ("\ufeff", "\r\n"), ("\ufeff\n", "\n \n")):
        found = imported(results(tmp_path / "results.jsonl", lines, separator, begin), "geneval")
        assert found.rows["official"].tolist() == [1, 0, 1, 0]
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes().rstrip()[:-9])  # a copy that was cut off
    with pytest.raises(UsageError, match=r"line 8 is not valid JSON, or is truncated"):
        imported(path, "geneval")
    path.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        imported(path, "geneval")
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match="is not UTF-8"):
        imported(path, "geneval")
    with pytest.raises(UsageError, match="cannot read"):
        imported(tmp_path / "nowhere.jsonl", "geneval")


def test_tags_are_printed_as_text(capsys) -> None:
    tags = np.array(["[red]x[/]", "[/]", "a\x1b[31mb"])
    print_summary(Evaluation("geneval", "official", tags, {"official": np.ones(3)}), "[bold]r.jsonl")
    shown = capsys.readouterr().out
    assert "[bold]r.jsonl" in shown
    assert "[red]x[/]" in shown
    assert "\x1b" not in shown


def test_a_picture_that_is_lost_has_no_verdict() -> None:
    sample = Sample(Path("P/00000/samples/0000.png"), Prompt("a cat", "colors", {"tag": "colors"}))
    detail = {"correct": True, "reason": "", "details": {}}
    assert official_line(sample, detail, {"reward": 1.0, "official": 1.0})["correct"] is True
    lost = official_line(sample, detail, {"reward": float("nan"), "official": float("nan")})
    assert "correct" not in lost
    assert "details" not in lost
    assert lost["official"] is None


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
    assert "1 of 8 images could not be scored" in captured.err
    assert "7 images" in captured.out


def test_a_prompt_without_metadata_keeps_its_text(tmp_path: Path) -> None:
    write(tmp_path, [Prompt("a <b>& \u05d0 \U0001f600", "sign")], torch.zeros(1, 3, 8, 8), [(0, 0)])
    (sample,) = read(tmp_path)
    assert (sample.prompt.text, sample.prompt.stratum) == ("a <b>& \u05d0 \U0001f600", "sign")
