"""Folders of pictures through the command line: what is scored, what is left out, what an earlier evaluation left."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from bench.analysis.metric_names import is_measure
from bench.scoring import folders as layout
from bench.scoring.folders import begin, left_out, read, world_of
from bench.system import files
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

SIGN = {"tag": "sign", "prompt": 'a sign that says "hello"'}
EVAL = ["eval", "--adapter", "base", "--steps", "1", "--split", "validation"]


def sign() -> Image.Image:
    image = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(image).text((40, 40), "HELLO", "black", ImageFont.load_default(48))
    return image


def add(folder: Path, home: str = "00000", file: str | None = "0000.png", image: Image.Image | None = None) -> None:
    (folder / home / "samples").mkdir(parents=True, exist_ok=True)
    (folder / home / "metadata.jsonl").write_text(json.dumps(SIGN) + "\n")
    if file:
        (image or sign()).save(folder / home / "samples" / file)


def test_sixteen_bits_score_as_eight(tmp_path: Path) -> None:
    add(tmp_path / "made")
    add(
        tmp_path / "made", "00001", image=Image.fromarray(np.asarray(sign().convert("L")).astype(np.uint16) * 64 + 8000)
    )
    done = bench(["score", "ocr", "made"], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = files.read_rows(tmp_path / "made" / "results-ocr.jsonl")
    assert [row["exact"] for row in rows] == [1, 1]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("home", "file"),
    [
        ("00001", "0000.PNG"), ("00001", "0000.jpg"), ("00001", "img_0000.png"), ("00001_a_dog", "0000.png"),
        ("00001", None), ("²", "0000.png"), ("00001", "٣.png"), ("00001", "0001.heic"), ("00001", "0001.jxl"),
        ("00001", "0001.jfif"), ("00001", "0001.exr"), ("00001", "0001"), ("00001", "more/0000.png"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_said(home: str, file: str | None, tmp_path: Path) -> None:
    add(tmp_path)
    add(tmp_path, home, None)
    if file:
        (tmp_path / home / "samples" / file).parent.mkdir(exist_ok=True)
        (tmp_path / home / "samples" / file).write_bytes(b"")
    (tmp_path / "00000" / "samples" / ".hidden.png").write_bytes(b"")
    (tmp_path / "00000" / "samples" / "notes.txt").write_text("")
    assert [sample.path.name for sample in read(tmp_path)] == ["0000.png"]
    shown = file and file.removesuffix("/0000.png")
    expected = tmp_path / home / "samples" / shown if home == "00001" and file else tmp_path / home
    assert left_out(tmp_path) == [expected]


@pytest.mark.parametrize("place", ["run/00000/samples/0000.png", "00000/00001/samples/0000.png", "00000/0001.png"])
def test_pictures_at_another_depth_are_said(place: str, tmp_path: Path) -> None:
    add(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    sign().save(tmp_path / place)
    assert len(read(tmp_path)) == 1
    expected = place.removesuffix("/samples/0000.png").removesuffix("/00000")
    assert left_out(tmp_path) == [tmp_path / expected]


@pytest.mark.parametrize(("home", "file"), [("0", "0001.png"), ("00000", "0.png")])
def test_two_of_one_number_are_refused(home: str, file: str, tmp_path: Path) -> None:
    add(tmp_path)
    add(tmp_path, home, file)
    with pytest.raises(layout.UsageError, match="have the same number"):
        read(tmp_path)
    begin(tmp_path, "ocr", "micro")
    assert [path.name for path in tmp_path.iterdir()] == ["origin.json"]


def test_the_command_says_what_it_left_out(tmp_path: Path) -> None:
    add(tmp_path / "made")
    for number in range(1, 5):
        add(tmp_path / "made", f"{number:05d}", "0000.jpg")
    done = bench(["score", "ocr", "made"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 images" in done.stdout
    assert done.stderr.startswith(
        "note: 4 left out, as GenEval's evaluator does: made/00001/samples/0000.jpg, made/00002"
    )
    (tmp_path / "made" / "00000" / "samples" / "0000.png").unlink()
    done = bench(["score", "ocr", "made"], tmp_path)
    assert done.returncode == 2
    assert "no images in GenEval's layout" in done.stderr
    assert "found made/00000 instead" in done.stderr


@pytest.mark.parametrize(
    "record",
    [b"[]", b"", b"{", b'{"prompt": 1}', b'{"prompt": "a", "tag": []}', b'{"tag": "a"}', b"\xff\xfe", b"[" * 9**5],
)
def test_a_prompt_record_that_is_none_is_named(record: bytes, tmp_path: Path) -> None:
    add(tmp_path)
    (tmp_path / "00000" / "metadata.jsonl").write_bytes(record)
    with pytest.raises(layout.UsageError, match=r"00000/metadata\.jsonl is not a prompt record"):
        read(tmp_path)


def test_prompt_records_are_utf_8_with_or_without_a_mark(tmp_path: Path) -> None:
    add(tmp_path)
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "00000" / "metadata.jsonl").write_bytes(mark + '{"prompt": "says \\"CAFÉ\\""}'.encode())
        assert read(tmp_path)[0].prompt.text == 'says "CAFÉ"'


@pytest.mark.parametrize("left", ["a picture", "results-ocr.jsonl", "scores.sqlite"])
def test_pictures_go_where_there_are_no_others(left: str, tmp_path: Path) -> None:
    if left == "a picture":
        add(tmp_path / "P" / "ocr")
    else:
        (tmp_path / "P" / "ocr").mkdir(parents=True)
        (tmp_path / "P" / "ocr" / left).write_text("")
    done = bench([*EVAL, "--tasks", "ocr", "--pictures", "P", "--output", "o.json"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: P/ocr is not empty; name a different folder, or remove it\n"
    assert not (tmp_path / "o.json").exists()


def test_a_run_that_draws_again_leaves_no_picture_of_before(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path, f"{number:05d}")
    for name in ("results.jsonl", "results-ocr.jsonl", "scores.sqlite", "notes.txt"):
        (tmp_path / name).write_text("")
    begin(tmp_path, "ocr", "micro")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "origin.json"]
    assert world_of(tmp_path) == "micro"


@pytest.mark.parametrize("task", ["pickscore", "geneval"])
def test_what_an_evaluation_drew_scores_as_it_did(task: str, tmp_path: Path) -> None:
    done = bench([*EVAL, "--tasks", task, "--pictures", "P", "--output", "new/folder/o.json"], tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = files.read_json(tmp_path / "new" / "folder" / "o.json")
    refused = bench(["score", task, f"P/{task}"], tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"error: the images in P/{task} are from the world 'micro', not 'photo': add --world micro\n"
    done = bench(["score", task, f"P/{task}", "--world", "micro"], tmp_path)
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "P" / task).glob("results*.jsonl")
    rows = files.read_rows(results)
    assert {metric for metric in record["rows"] if is_measure(metric)}
    scores = {metric: values for metric, values in record["rows"].items() if not is_measure(metric)}
    for metric, values in scores.items():
        found = np.array([row[metric] for row in rows])
        unit = 0.02 * max(1, np.ptp(values))  # files hold 8 bits, the evaluation saw floats
        assert (np.abs(found - values) < unit).mean() > 0.98, metric
        assert found.mean() == pytest.approx(np.mean(values), abs=unit / 4)


def test_what_a_pipeline_drew_scores_to_the_last_digit(sd3_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "train.txt").write_text("".join(f"a cat {i}\n" for i in range(140)))
    (tmp_path / "prompts" / "test.txt").write_text("castle,\u2028oil\na dog\na dog\n", encoding="utf-8")
    models = [f"--set=scorers.pickscore.{key}={clip_folder}" for key in ("model", "processor")]
    words = [
        "eval",
        "--backbone",
        str(sd3_folder),
        "--adapter",
        "base",
        "--tasks",
        "pickscore",
        "--steps",
        "1",
        *models,
        "--set=scorers.features.model=none",
    ]
    words += ["--set", "scorers.pickscore.prompts=prompts", "--pictures", "P", "--output", "o.json"]
    done = bench(words, tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = files.read_json(tmp_path / "o.json")
    done = bench(["score", "pickscore", "P/pickscore", *models], tmp_path)
    assert done.returncode == 0, done.stderr
    rows = files.read_rows(tmp_path / "P" / "pickscore" / "results-pickscore.jsonl")
    assert [row["prompt"] for row in rows] == ["castle,\u2028oil", "a dog", "a dog"]
    assert [row["pickscore"] for row in rows] == pytest.approx(record["rows"]["pickscore"], abs=1e-5)
    # The same again, where prompts cannot be kept: their folder's name is taken by a file.
    (tmp_path / "elsewhere" / "results" / "runs").mkdir(parents=True)
    (tmp_path / "elsewhere" / "results" / "runs" / "cache").write_text("")
    words[words.index("scorers.pickscore.prompts=prompts")] = f"scorers.pickscore.prompts={tmp_path / 'prompts'}"
    done = bench(words, tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert files.read_json(tmp_path / "elsewhere" / "o.json") == [record]


@pytest.mark.parametrize("place", ["/proc/nowhere/o.json", "file/o.json", "folder", "x" * 256])
@pytest.mark.parametrize("option", ["--output", "--pictures"])
def test_places_that_cannot_be_written_are_found_out_first(option: str, place: str, tmp_path: Path) -> None:
    if option == "--pictures" and place == "folder":
        place = "file"
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    done = bench([*EVAL, "--tasks", "ocr", option, place], tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: cannot write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def _fail_to_print() -> None:
    from bench.cli import evaluate as evaluation_command

    def fail(*_: object) -> None:
        raise UnicodeEncodeError("ascii", "é", 0, 1, "cannot print")

    evaluation_command._print = fail


def _fail_on_the_second_task() -> None:
    from tasks.ocr.task import Ocr

    def fail(*_: object) -> None:
        raise RuntimeError("the engine broke")

    Ocr.score = fail


def test_scores_are_there_when_printing_fails(tmp_path: Path) -> None:
    bench([*EVAL, "--tasks", "geneval", "--output", "o.json"], tmp_path, before=_fail_to_print)
    assert [record["task"] for record in files.read_json(tmp_path / "o.json")] == ["geneval"]


def test_what_was_scored_before_a_failure_is_kept_and_printed(tmp_path: Path) -> None:
    words = [*EVAL, "--tasks", "geneval,ocr", "--output", "o.json"]
    done = bench(words, tmp_path, before=_fail_on_the_second_task)
    assert done.returncode == 1
    assert "the engine broke" in done.stderr
    assert "official *" in done.stdout
    assert [record["task"] for record in files.read_json(tmp_path / "o.json")] == ["geneval"]
    assert "geneval" in done.stderr  # the progress of both
    assert "13/13" in done.stderr


def _read_only() -> None:
    """Everything under the current folder as on a read-only file system, for root too."""
    import errno

    from bench.cli import score as score_command

    def refuse(path: Path, _: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    score_command.write_atomic = refuse


def test_a_score_that_cannot_be_stored_is_printed(tmp_path: Path) -> None:
    add(tmp_path / "made")
    (tmp_path / "made" / "scores.sqlite").mkdir()  # no database can be had there
    done = bench(["score", "ocr", "made"], tmp_path, before=_read_only)
    assert done.returncode == 2
    assert "exact *" in done.stdout
    assert done.stderr == (
        "error: the scores above could not be stored in made/results-ocr.jsonl: Read-only file system\n"
    )
    done = bench(["score", "ocr", "made"], tmp_path)  # only the cache cannot be written
    assert done.returncode == 0
    assert done.stderr.startswith("note: scores are not cached: made/scores.sqlite: ")
    assert (tmp_path / "made" / "results-ocr.jsonl").is_file()


def _no_black_pictures() -> None:
    from tasks.ocr import engine, task

    def read(images):
        if (images.mean((1, 2, 3)) == 0).any():
            raise RuntimeError("too dark to read")
        return engine.read_with_rapidocr(images)

    task.WORLDS["photo"] = (task.WORLDS["photo"][0], read)


def test_why_a_picture_has_no_score_is_said(tmp_path: Path) -> None:
    black = Image.new("RGB", (256, 128))
    for number, image in enumerate([sign(), Image.new("1", (13_000, 13_000)), black, black.resize((64, 64)), sign()]):
        add(tmp_path, f"{number:05d}", image=image)
    done = bench(["score", "ocr", "."], tmp_path, before=_no_black_pictures)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "3 of 5 images could not be scored" in done.stderr
    assert "00001/samples/0000.png is not a readable image: it has 169,000,000 pixels" in done.stderr
    assert "00002/samples/0000.png: the scorer of task 'ocr' failed: too dark to read" in done.stderr
    rows = files.read_rows(tmp_path / "results-ocr.jsonl")
    assert [row["exact"] for row in rows] == [1, None, None, None, 1]


def test_a_folder_whose_target_is_not_certain_is_refused_with_the_file(tmp_path: Path) -> None:
    add(tmp_path)
    record = {"tag": "sign", "prompt": 'a 5" wide sign that says "hello"'}
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(record))
    done = bench(["score", "ocr", "."], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: 00000/metadata.jsonl: an OCR prompt needs text in double quotes, and no other"
    )


def test_scores_of_a_read_only_database_are_used(tmp_path: Path) -> None:
    from bench.api.task import Prompt
    from bench.scoring.cache import RememberingTask
    from tests.tasks.test_remote import Moody, pictures

    path = tmp_path / "scores.sqlite"
    first = RememberingTask(Moody(), path).score(pictures(), [Prompt("a")] * 3)
    inner = Moody()
    task = RememberingTask(inner, path)
    task.kept.close()
    task.kept, task.forgets = sqlite3.connect(f"file:{path}?mode=ro", uri=True), None
    again = task.score(pictures(4), [Prompt("a")] * 4)
    np.testing.assert_array_equal(again.rewards[:3], first.rewards)
    assert inner.calls == [1]
    assert "readonly" in task.forgets
    (tmp_path / "rows.sqlite").unlink(missing_ok=True)
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE scores SET scores = '[]'")  # damaged rows are scored again
    inner = Moody()
    np.testing.assert_array_equal(
        RememberingTask(inner, path).score(pictures(), [Prompt("a")] * 3).rewards, first.rewards
    )
    assert inner.calls == [3]
