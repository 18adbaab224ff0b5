"""The user's images with captions: a folder in Hugging Face's ImageFolder format, read without its library.

FOLDER/metadata.jsonl has one JSON object a line: `text` is the caption, and `file_name` an image of the folder. A row
with several images has a key for each that ends in _file_name, such as chosen_file_name. Other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import DamagedError, UsageError, one_line
from bench.hashing import content_hash
from bench.lazy import torch
from bench.scoring.pictures import check_header, from_file, to_bytes
from bench.system.files import is_file, parse_json, read_lines
from bench.weights.checkpoints import refuse_stand_in

if TYPE_CHECKING:
    from torch import Tensor

METADATA, CAPTION = "metadata.jsonl", "text"


@dataclass(frozen=True)
class DataRow:
    """One line of metadata.jsonl."""

    caption: str
    pictures: tuple[Path, ...]
    """The image files, one per requested column."""
    where: str
    """The file and line that describe the row, for messages."""


def read_folder(folder: Path, columns: tuple[str, ...]) -> list[DataRow]:
    """The rows of a folder, each with the images that `columns` name.

    Only the images' headers are read. Raises UsageError, naming the file and the line, for a missing or empty caption,
    for an image that is missing, outside the folder, too large or of a kind that is not read, and for a folder without
    rows.
    """
    path = folder / METADATA
    try:
        if not is_file(path):
            raise UsageError(f"{folder} has no {METADATA}, which names its images and their captions")
        refuse_stand_in(path, "list of images")
        root, lines = folder.resolve(), list(_objects(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {one_line(error)}") from error
    rows = []
    for where, line in lines:
        caption = _text(line, CAPTION, where)
        pictures = tuple(_picture(root, _text(line, column, where), where) for column in columns)
        if len(set(pictures)) < len(pictures):
            raise UsageError(f"{where}: {' and '.join(columns)} are the same image")
        rows.append(DataRow(caption, pictures, where))
    if not rows:
        raise UsageError(f"{path} is empty: write one JSON object with {CAPTION}, {', '.join(columns)} a line")
    return rows


def folder_hash(folder: Path, rows: list[DataRow]) -> str:
    """Content hash of metadata.jsonl and of every image that the rows name. Reads all of them."""
    return content_hash({folder / METADATA, *(picture for row in rows for picture in row.pictures)})


def load_picture(row: DataRow, index: int, size: tuple[int, int]) -> Tensor:
    """An image of a row as [3, H, W] in [0, 1], for `size` (H, W): the largest central part of that shape, resized.

    Resized by Pillow's bicubic filter, which is antialiased, in 8 bits. Raises DamagedError if it cannot be decoded.
    """
    from PIL import Image, ImageOps

    picture = row.pictures[index]
    try:
        pixels = to_bytes(from_file(picture))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{row.where}: cannot read {picture}: {one_line(error)}") from error
    height, width = size
    fitted = ImageOps.fit(Image.fromarray(pixels), (width, height), Image.Resampling.BICUBIC)
    channels_last = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(height, width, 3)
    return channels_last.permute(2, 0, 1).float() / 255


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(File and line, JSON object) of every line that is not empty. Raises DamagedError for any other line."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        found = parse_json(line, where)
        if not isinstance(found, dict):
            raise DamagedError(f"{where} contains a value of type {type(found).__name__}, not a JSON object")
        yield where, found


def _text(line: dict[str, Any], key: str, where: str) -> str:
    """A value of a line that must be text. Raises UsageError if it is missing, empty or of another type."""
    if key not in line:
        raise UsageError(f"{where} has no {key!r}; it has {', '.join(map(repr, sorted(line))) or 'no keys'}")
    value = line[key]
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {key} should be text that is not empty, not {value!r:.60}")
    return value.strip()


def _picture(root: Path, name: str, where: str) -> Path:
    """The file of an image inside `root`. Raises UsageError if it is outside, missing or has an unusable header."""
    picture = root / name
    try:
        if not picture.resolve().is_relative_to(root):
            raise UsageError(f"{where}: {name!r} leads out of the folder: copy the image into it")
        if not is_file(picture):
            raise UsageError(f"{where}: there is no image {picture}")
        check_header(picture)
    except (OSError, ValueError, RuntimeError, DamagedError) as error:  # RuntimeError: a link to itself
        raise UsageError(f"{where}: cannot read {picture}: {one_line(error)}") from error
    return picture
