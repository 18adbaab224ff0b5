"""Picture files of every kind against what a viewer shows, and how many pixels are read."""

import base64
import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.errors import UsageError
from bench.scoring.folders import load
from bench.scoring.pictures import LARGEST, THINNEST, TooLargeError, from_file
from bench.scoring.remote import decode
from bench.scoring.server import Refusal, understood

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)
"""Grey, in shares of white."""


def saved(image: Image.Image, kind: str, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


GREYS = {
    "8 bits": (Image.fromarray((RAMP * 255).round().astype(np.uint8)), "PNG", "L"),
    "16 bits, PNG": (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "PNG", "I;16"),
    "16 bits, TIFF": (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "TIFF", "I;16"),
    "16 bits, TIFF, big end first": (Image.fromarray((RAMP * 65535).round().astype(">u2")), "TIFF", "I;16B"),
    "16 bits, PGM": (Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "PPM", "I"),
    "floats": (Image.fromarray(RAMP.astype(np.float32)), "TIFF", "F"),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_of_every_depth_is_the_same_grey(name: str) -> None:
    image, kind, mode = GREYS[name]
    file = saved(image, kind)
    with Image.open(file) as opened:
        assert opened.mode == mode
    file.seek(0)
    found = from_file(file)
    assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 48, 64), torch.float32, True)
    np.testing.assert_allclose(found.numpy(), np.broadcast_to(RAMP, (3, 48, 64)), atol=0.5 / 255)
    sent = decode(base64.b64encode(file.getvalue()).decode())  # what a server makes of it
    assert torch.equal(sent, found)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        ((RAMP * 65535).astype(np.int32), "the value of white is unknown"),
        ((RAMP * 255).astype(np.float32), r"floats outside \[0, 1\]"),
        (np.full((4, 4), np.nan, np.float32), r"floats outside \[0, 1\]"),
    ],
)
def test_grey_without_a_white_is_refused(pixels: np.ndarray, said: str, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "grey.tiff")
    with pytest.raises(UsageError, match=said):
        load(tmp_path / "grey.tiff")


def palette() -> Image.Image:
    """Left half black (index 0), right half red."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (4, 0, 8, 8))
    return image


def halves(mode: str, left: object, right: object) -> Image.Image:
    image = Image.new(mode, (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


COLOURS = {
    # picture, format, options, what a viewer shows left and right
    "black and white": (halves("1", 0, 1), "PNG", {}, (0, 0, 0), (1, 1, 1)),
    "palette": (palette(), "PNG", {}, (0, 0, 0), (1, 0, 0)),
    "palette, black is clear": (palette(), "PNG", {"transparency": 0}, (1, 1, 1), (1, 0, 0)),
    "GIF, black is clear": (palette(), "GIF", {"transparency": 0}, (1, 1, 1), (1, 0, 0)),
    "grey with alpha": (halves("LA", (0, 0), (0, 255)), "PNG", {}, (1, 1, 1), (0, 0, 0)),
    "colour with alpha": (halves("RGBA", (255, 0, 0, 0), (0, 255, 0, 255)), "PNG", {}, (1, 1, 1), (0, 1, 0)),
    "half clear": (halves("RGBA", (0, 0, 0, 51), (0, 0, 255, 255)), "PNG", {}, (0.8, 0.8, 0.8), (0, 0, 1)),
    "colour, one is clear": (
        halves("RGB", (1, 2, 3), (255, 0, 0)), "PNG", {"transparency": (1, 2, 3)}, (1, 1, 1), (1, 0, 0),
    ),
    "16 bits, one is clear": (
        Image.fromarray(np.repeat([[7] * 4 + [65535 // 3] * 4], 8, 0).astype(np.uint16)), "PNG", {"transparency": 7},
        (1, 1, 1), (1 / 3, 1 / 3, 1 / 3),
    ),
    "CMYK": (halves("RGB", "red", "white").convert("CMYK"), "TIFF", {}, (1, 0, 0), (1, 1, 1)),
    "CMYK, JPEG": (Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG", {"quality": 100}, (1, 0, 0), (1, 0, 0)),
    "YCbCr": (Image.new("RGB", (8, 8), "red").convert("YCbCr"), "TIFF", {}, (1, 0, 0), (1, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_those_that_a_viewer_shows(name: str) -> None:
    image, kind, options, left, right = COLOURS[name]
    found = from_file(saved(image, kind, **options))
    assert found[:, 4, 1].tolist() == pytest.approx(left, abs=1.5 / 255)
    assert found[:, 4, 6].tolist() == pytest.approx(right, abs=1.5 / 255)


def png(depth: int, kind: int, clear: bytes, pixels: bytes) -> bytes:
    """Two pixels beside each other, one value of which is transparent; Pillow writes no such files."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    rows = zlib.compress(b"\0" + pixels)
    parts = chunk(b"IHDR", head) + chunk(b"tRNS", clear) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("clear", ["left", "right"])
def test_grey_of_any_depth_is_on_white_where_it_is_transparent(depth: int, clear: str) -> None:
    left, right = (0, 1) if depth == 1 else (1, 2**depth - 2)
    pixels = ((left << depth | right) << (-2 * depth % 8)).to_bytes(-(-2 * depth // 8), "big")
    file = png(depth, 0, struct.pack(">H", {"left": left, "right": right}[clear]), pixels)
    shares = [1.0 if clear == side else value / (2**depth - 1) for side, value in (("left", left), ("right", right))]
    assert from_file(io.BytesIO(file))[0, 0].tolist() == pytest.approx(shares, abs=1e-3)


def test_sixteen_bits_of_colour_with_a_transparent_one_are_refused() -> None:
    file = png(16, 2, struct.pack(">3H", 1, 2, 3), struct.pack(">6H", 1, 2, 3, 65535, 0, 0))
    with pytest.raises(ValueError, match="its colours have 16 bits and one of them is transparent, which is not supported"):
        from_file(io.BytesIO(file))


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (2, 2 * THINNEST + 1), (1, THINNEST + 1)])
def test_a_line_is_no_picture(size: tuple[int, int], tmp_path: Path) -> None:
    """Scorers enlarge the short side: 167 bytes took gigabytes."""
    Image.new("1", size).save(tmp_path / "line.png")
    with pytest.raises(UsageError, match=rf"it is {size[0]:,} x {size[1]:,} pixels, which is thinner than 1:50"):
        load(tmp_path / "line.png")
    sent = base64.b64encode((tmp_path / "line.png").read_bytes()).decode()
    with pytest.raises(Refusal, match=r"image 0 is not readable: .* thinner than 1:50") as refused:
        understood(json.dumps({"images": [sent], "prompts": [{"text": "a"}]}).encode())
    assert refused.value.status == 400
    assert from_file(saved(Image.new("L", (2 * THINNEST, 2)), "PNG")).shape == (3, 2, 2 * THINNEST)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", r"a Git-LFS pointer; .*\(git lfs pull\)"),
        (b"<!DOCTYPE html>\n<html>", "it is a web page; download it again"),
        (b"", "it is empty"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "its format is not one of PNG, JPEG"),
        (b"no picture", "its format is not one of PNG, JPEG"),
    ],
)
def test_what_stands_for_a_picture_is_called_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "0000.png").write_bytes(content)
    with pytest.raises(UsageError, match=rf"0000\.png is not a readable image: .*{said}"):
        load(tmp_path / "0000.png")
    with pytest.raises(ValueError, match=said):
        decode(base64.b64encode(content).decode())


def test_eight_bits_are_read_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found = from_file(saved(Image.fromarray(pixels), "PNG"))
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_a_small_file_of_many_pixels_is_refused_unread(tmp_path: Path, capfd) -> None:
    Image.new("1", (13_000, 13_000)).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size < 100_000
    started = time.process_time()
    with pytest.raises(UsageError, match=r"large\.png is not a readable image: it has 169,000,000 pixels, more than the limit of 33,554,432"):
        load(tmp_path / "large.png")
    assert time.process_time() - started < 1
    assert capfd.readouterr().err == ""
    with pytest.raises(TooLargeError):
        decode(base64.b64encode((tmp_path / "large.png").read_bytes()).decode())
    Image.new("1", (5792, LARGEST // 5792)).save(tmp_path / "allowed.png")
    assert load(tmp_path / "allowed.png").shape == (3, 5793, 5792)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5])
def test_broken_files_are_no_pictures(kind: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), kind).getvalue()
    (tmp_path / "broken.png").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UsageError, match="is not a readable image"):
        load(tmp_path / "broken.png")
