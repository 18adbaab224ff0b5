"""Files that are none, and what JSON and text may hold."""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.errors import DamagedError, UsageError
from bench.jobs import status
from bench.scoring import folders as layout
from bench.scoring.pictures import from_file
from bench.store.names import APPENDED, REPLACED
from bench.system.files import parse_json, read_lines, read_record, read_rows, read_text

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def put(path: Path, kind: str) -> None:
    """Something in place of a file on which reading would wait, or go on, for ever; or that is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "itself": path.name, "nowhere": "gone/away"}[kind])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "itself"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    put(tmp_path / "x", kind)
    for read in (read_text, read_record, read_rows, read_lines):
        with pytest.raises((DamagedError, OSError), match=r"x is .*not a file|symbolic links"):
            read(tmp_path / "x")
    put(tmp_path / "d" / "00000" / "samples" / "0000.png", kind)
    with pytest.raises(UsageError, match="is not a readable image"):
        layout.load(tmp_path / "d" / "00000" / "samples" / "0000.png")
    put(tmp_path / "d" / "00000" / "metadata.jsonl", kind)
    with pytest.raises(UsageError, match="is not a prompt record"):
        layout.read(tmp_path / "d")


@pytest.mark.parametrize("kind", ["pipe", "device", "itself", "nowhere", "folder"])
@pytest.mark.parametrize("file", [*APPENDED, *REPLACED])
def test_a_run_with_what_is_no_file_is_damaged(file: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text('{"spec": {"budget": {"updates": 3}}}')
    (tmp_path / "run" / file).unlink(missing_ok=True)
    put(tmp_path / "run" / file, kind)
    (line,) = status.survey(tmp_path)
    assert (line.name, line.state) == ("run", "damaged")
    assert file in line.note


@pytest.mark.parametrize("kind", ["pipe", "device", "itself"])
@pytest.mark.parametrize("path", ["launches", "launches/one/launch.json"])
def test_launches_that_are_none_are_damaged(path: str, kind: str, tmp_path: Path) -> None:
    put(tmp_path / path, kind)
    (line,) = status.survey(tmp_path)
    assert (line.name, line.state) == (path.removesuffix("/launch.json"), "damaged")


def test_a_file_of_launches_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "launches").write_text("")
    assert [(line.name, line.state) for line in status.survey(tmp_path)] == [("launches", "damaged")]


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "b": 2, "a": 3}}]'])
def test_a_key_that_is_there_twice_is_named(text: str) -> None:
    with pytest.raises(DamagedError, match="here, line 3 gives the key 'a' twice"):
        parse_json(text, "here, line 3")


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_called_so(coding: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("a cat\na d\u00f6g\n".encode(coding))
    with pytest.raises(DamagedError, match="x is not UTF-8 text: it looks like UTF-16; save it as UTF-8"):
        read_text(tmp_path / "x")


def test_zeros_in_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a cat\na dog\0\0\0\n")
    with pytest.raises(DamagedError, match="x, line 2 contains zero bytes"):
        read_lines(tmp_path / "x")


def test_what_a_shell_hands_over_is_read(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"a cat\n")
    os.close(writes)
    assert read_lines(Path(f"/dev/fd/{reads}")) == ["a cat"]
    os.close(reads)


def test_a_picture_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    (tmp_path / "0000.png").write_bytes(EPS)
    with Image.open(tmp_path / "0000.png") as image:
        assert image.format == "EPS"
    with pytest.raises(UsageError, match="is not a readable image: its format is not one of PNG, JPEG"):
        layout.load(tmp_path / "0000.png")
    with pytest.raises(ValueError, match="its format is not one of PNG"):
        from_file(io.BytesIO(EPS))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_several_frames_are_refused(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "0000.png", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UsageError, match="it contains 2 frames"):
        layout.load(tmp_path / "0000.png")


def test_a_telephone_picture_with_another_behind_it_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "0000.png", "MPO", save_all=True, append_images=frames[1:])
    assert layout.load(tmp_path / "0000.png").mean((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=0.02)


def tiff(bits: int, meaning: int) -> bytes:
    """Grey of 2 x 1 pixels without compression."""
    data = b"\xff" * ((2 * bits + 7) // 8)
    entries = {256: 2, 257: 1, 258: bits, 259: 1, 262: meaning, 273: 8, 277: 1, 278: 1, 279: len(data)}
    directory = b"".join(
        tag.to_bytes(2, "little") + b"\x03\0\x01\0\0\0" + value.to_bytes(4, "little") for tag, value in entries.items()
    )
    start = 8 + len(data)
    return b"II*\0" + start.to_bytes(4, "little") + data + len(entries).to_bytes(2, "little") + directory + b"\0\0\0\0"


@pytest.mark.parametrize(("bits", "meaning", "said"), [(12, 1, "its grey values have 12 bits"), (16, 0, "white at zero")])
def test_deep_grey_that_means_something_else_is_refused(bits: int, meaning: int, said: str) -> None:
    assert from_file(io.BytesIO(tiff(16, 1))).tolist() == [[[1.0, 1.0]]] * 3
    with pytest.raises(ValueError, match=said):
        from_file(io.BytesIO(tiff(bits, meaning)))


def test_reading_a_picture_warns_of_nothing() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from_file(io.BytesIO(buffer.getvalue())).mul_(2)
    assert [str(warning.message) for warning in seen] == []


def test_rows_name_the_line_of_a_key_given_twice(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps({"a": 1}) + '\n{"a": 1, "a": 2}\n{}\n')
    with pytest.raises(DamagedError, match="x, line 2 gives the key 'a' twice"):
        read_rows(tmp_path / "x")
