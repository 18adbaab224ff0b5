"""Folders of the user's pictures: what is read, and one line for everything that cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import BenchError, UsageError
from methods.picture_folder import folder_hash, load_picture, read_folder
from tests.folders import PAIR, write_folder

TEXTS = ["a photo of a cat", "a photo of a dog", "two birds"]
FILE = ("file_name",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", TEXTS)


def rewrite(folder: Path, number: int, **changes: object) -> None:
    """Change keys of a line of metadata.jsonl, counted from 1; None removes one."""
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[number - 1] = {k: v for k, v in (rows[number - 1] | changes).items() if v is not None}
    path.write_text("\n".join(map(json.dumps, rows)))


def test_rows_are_captions_with_their_pictures_in_order(folder: Path) -> None:
    single, pairs = read_folder(folder, FILE), read_folder(folder, PAIR)
    assert [row.caption for row in single] == [row.caption for row in pairs] == TEXTS
    assert [row.pictures[0].name for row in single] == [f"{i}-file_name.png" for i in range(3)]
    assert [p.name for p in pairs[1].pictures] == ["1-chosen_file_name.png", "1-rejected_file_name.png"]
    assert pairs[1].where.endswith("metadata.jsonl, line 2")


def test_empty_lines_subfolders_and_other_keys_are_fine(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "0-file_name.png").rename(folder / "sub" / "a.png")
    (folder / "link.png").symlink_to("sub/a.png")  # stays inside
    rewrite(folder, 1, file_name="sub/a.png", licence="none")
    rewrite(folder, 2, file_name="link.png")
    path = folder / "metadata.jsonl"
    path.write_text("\n" + path.read_text() + "\n\n")
    rows = read_folder(folder, FILE)
    assert [row.where.rpartition(" ")[2] for row in rows] == ["2", "3", "4"]


REFUSED = {
    "no caption": ({"text": None}, "line 2 has no 'text'; it has 'chosen_file_name', 'file_name', 'rejected_file_name'"),
    "an empty caption": ({"text": " "}, "line 2: text should be text that is not empty, not ' '"),
    "a number": ({"text": 7}, "line 2: text should be text that is not empty, not 7"),
    "no file name": ({"file_name": None}, "line 2 has no 'file_name'"),
    "a missing file": ({"file_name": "none.png"}, "line 2: there is no image .*none.png"),
    "a folder": ({"file_name": "sub"}, "line 2: cannot read .*sub: .*is a folder, not a file"),
    "out by dots": ({"file_name": "../out.png"}, "line 2: '../out.png' leads out of the folder"),
    "out by its root": ({"file_name": "/etc/passwd"}, "line 2: '/etc/passwd' leads out of the folder"),
    "out by a link": ({"file_name": "link.png"}, "line 2: 'link.png' leads out of the folder"),
    "a link to itself": ({"file_name": "loop.png"}, "line 2: "),
    "no picture": ({"file_name": "metadata.jsonl"}, "line 2: cannot read .*metadata.jsonl: its format is not one of"),
    "an empty file": ({"file_name": "empty.png"}, "line 2: cannot read .*empty.png: it is empty"),
    "a huge picture": ({"file_name": "huge.png"}, "line 2: cannot read .*huge.png: it has 49,000,000 pixels, more than"),
    "a thin picture": ({"file_name": "thin.png"}, "line 2: cannot read .*thin.png: .* thinner than 1:50"),
    "several frames": ({"file_name": "film.gif"}, "line 2: cannot read .*film.gif: it contains 2 frames"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_line(folder: Path, case: str) -> None:
    (folder / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(folder.parent / "out.png")
    (folder / "link.png").symlink_to(folder.parent / "out.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "empty.png").touch()
    if case == "a huge picture":
        Image.new("1", (7000, 7000)).save(folder / "huge.png")
    Image.new("RGB", (102, 2)).save(folder / "thin.png")
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 255)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    changes, message = REFUSED[case]
    rewrite(folder, 2, **changes)
    with pytest.raises(UsageError, match=message):
        read_folder(folder, FILE)


def test_folders_and_lists_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere has no metadata\.jsonl"):
        read_folder(tmp_path / "nowhere", FILE)
    rewrite(folder, 3, rejected_file_name="2-chosen_file_name.png")
    with pytest.raises(UsageError, match="line 3: chosen_file_name and rejected_file_name are the same image"):
        read_folder(folder, PAIR)
    for content, message in {
        "": r"metadata\.jsonl is empty: write one JSON object with text, file_name a line",
        "[1]\n": r"line 1 contains a value of type list, not a JSON object",
        '{"text": "a"\n': "line 1 is not JSON",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "it is a Git-LFS pointer",
    }.items():
        (folder / "metadata.jsonl").write_text(content)
        with pytest.raises(BenchError, match=message):
            read_folder(folder, FILE)


def test_a_picture_damaged_behind_its_header_is_named_when_it_is_read(folder: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "0-file_name.png")
    whole = (folder / "0-file_name.png").read_bytes()
    (folder / "0-file_name.png").write_bytes(whole[: len(whole) // 2])
    row = read_folder(folder, FILE)[0]
    with pytest.raises(UsageError, match=r"metadata\.jsonl, line 1: cannot read .*0-file_name\.png"):
        load_picture(row, 0, (32, 32))


def test_a_picture_of_the_size_is_itself_and_a_wider_one_loses_its_sides(folder: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0-file_name.png")
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :16], wide[:, 16:48], wide[:, 48:] = 255, pixels, 255  # white margins
    Image.fromarray(wide).save(folder / "1-file_name.png")
    whole, cropped = (load_picture(row, 0, (32, 32)) for row in read_folder(folder, FILE)[:2])
    assert torch.equal(whole, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    assert torch.equal(cropped, whole)


def test_a_large_picture_is_averaged_and_a_turned_one_stands_upright(folder: Path) -> None:
    checks = np.indices((256, 256)).sum(0) % 2 * 255  # at a quarter of its size, grey
    Image.fromarray(checks.astype(np.uint8)).save(folder / "0-file_name.png")
    image = Image.new("RGB", (64, 64))
    image.paste((255, 0, 0), (0, 0, 64, 32))  # its upper half is red
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    image.save(folder / "1-file_name.png", exif=exif)
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(folder / "2-file_name.png")
    grey, turned, clear = (load_picture(row, 0, (32, 32)) for row in read_folder(folder, FILE))
    assert grey.shape == (3, 32, 32)
    assert grey.sub(0.5).abs().max() < 0.02
    assert turned[0, :14].max() == 0
    assert turned[0, 18:].min() == 1
    assert clear.min() == 1  # transparent parts are white


def test_the_hash_is_of_the_contents_of_the_files_that_are_used(folder: Path, tmp_path: Path) -> None:
    def now(columns: tuple[str, ...] = FILE, place: Path = folder) -> str:
        return folder_hash(place, read_folder(place, columns))

    before = now()
    assert now(place=write_folder(tmp_path / "copy", TEXTS)) == before
    assert now(PAIR) != before
    Image.new("RGB", (32, 32)).save(folder / "1-chosen_file_name.png")
    assert now() == before  # flow matching does not read it
    Image.new("RGB", (32, 32)).save(folder / "1-file_name.png")
    changed = now()
    assert changed != before
    rewrite(folder, 1, text="another caption")
    assert now() not in (before, changed)
