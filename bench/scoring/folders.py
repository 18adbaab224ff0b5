"""Folders of images in GenEval's official layout, which GenEval's evaluator reads and any tool can write.

DIR/00000/metadata.jsonl holds one JSON object: the prompt and what the scorer needs to know about it.
DIR/00000/samples/0000.png and so on are the prompt's images. In folders written here, DIR/origin.json names the task
and the world.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from bench.api.task import Prompt
from bench.errors import DamagedError, UsageError, one_line
from bench.scoring.pictures import from_file, to_bytes
from bench.system.files import json_bytes, read_record
from bench.weights.checkpoints import refuse_stand_in

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = "pictures"
"""Subfolder in which a run keeps its images: RUN/pictures/TASK."""
RECORD, SAMPLES, ORIGIN = "metadata.jsonl", "samples", "origin.json"
RESULTS, CACHE = "results.jsonl", "scores.sqlite"
"""Files written by `bench score` next to the images; most tasks write results-<task>.jsonl instead."""
JUDGED = "geneval"
"""The task whose results are verdicts in the format of GenEval's evaluator, which its other scripts read."""
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".jxl",
    ".avif", ".heic", ".heif", ".ppm", ".pgm",
)  # fmt: skip
"""File name endings of images, used to find images whose names do not follow the layout."""
NOTES = (".txt", ".md", ".log", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".html", ".db", ".ini")
"""File name endings that are accepted next to images without being images."""


@dataclass(frozen=True)
class Sample:
    """One image file and its prompt."""

    path: Path
    prompt: Prompt


def identity(tag: str, text: str, metadata: object) -> str:
    """A key that is equal for entries of the same prompt, wherever images are counted by prompt.

    It consists of tag, text and metadata. Positions are left out: a prompt may appear several times in a list, and
    tools differ in which images they put in one folder.
    """
    return json.dumps([tag, text, metadata or None], sort_keys=True, default=repr)


def is_verdict(value: object) -> bool:
    """Whether a value is true or false, as JSON booleans or as the numbers 1 and 0; text is not accepted."""
    return isinstance(value, bool | int | float) and value in (True, False)


def read(folder: Path) -> list[Sample]:
    """All images under `folder`, ordered by prompt number and image number.

    Like GenEval's evaluator, it reads numbered folders and images named NUMBER.png only; `left_out` lists the rest.

    Raises UsageError if there are no such images, or if a number occurs twice (0.png and 0000.png): the folder then
    mixes the output of two tools.
    """
    samples = []
    homes = _prompt_folders(folder)
    _check_numbers(homes)
    for home in homes:
        prompt, pictures = _prompt(home / RECORD), _pictures(home)
        _check_numbers(pictures)
        samples += [Sample(path, prompt) for path in pictures]
    if not samples:
        others = left_out(folder)
        found = f"; found {others[0]} instead" if others else ""
        raise UsageError(f"no images in GenEval's layout (DIR/00000/samples/0000.png) under {folder}{found}")
    return samples


def left_out(folder: Path) -> list[Path]:
    """What `read` skips although it looks like part of the layout.

    These are images and folders whose names do not follow it, and prompts without an image.
    """
    homes = _prompt_folders(folder)
    found = []
    for entry in _entries(folder):
        if entry in homes:
            skipped = _skipped(entry)
            empty = not skipped and not _pictures(entry)
            found += [entry] if empty else skipped
        elif _looks_like_image(entry) or _is_prompt_folder(entry) or _has_prompt_folders(entry):
            found.append(entry)
    return found


def _skipped(home: Path) -> list[Path]:
    """Images and folders of one prompt that `read` skips."""
    taken = set(_pictures(home))
    samples = [path for path in _entries(home / SAMPLES) if path not in taken]
    misnamed = [path for path in samples if _may_be_image(path)]
    misplaced = [path for path in _entries(home) if _looks_like_image(path) or _is_prompt_folder(path)]
    return misnamed + misplaced


def _is_prompt_folder(path: Path) -> bool:
    """Whether a folder holds a prompt record, or samples of one."""
    return (path / RECORD).is_file() or (path / SAMPLES).is_dir()


def _has_prompt_folders(folder: Path) -> bool:
    try:
        return any(_is_prompt_folder(inner) for inner in _prompt_folders(folder))
    except UsageError:  # an unreadable folder, which is probably unrelated
        return False


def _check_numbers(paths: list[Path]) -> None:
    """Raise UsageError if two neighbours have the same number; `paths` are sorted by it."""
    for one, other in pairwise(paths):
        if int(one.stem) == int(other.stem):
            raise UsageError(f"{one} and {other.name} have the same number: remove one of them")


def _entries(folder: Path) -> list[Path]:
    """A folder's sorted entries; none if it does not exist. Raises UsageError if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {one_line(error)}") from error


def _prompt_folders(folder: Path) -> list[Path]:
    """Numbered subfolders, in numerical order."""
    numbered = [path for path in _entries(folder) if re.fullmatch("[0-9]+", path.name)]
    return sorted(numbered, key=lambda path: int(path.name))


def _pictures(home: Path) -> list[Path]:
    """Images of a prompt whose names are NUMBER.png, in numerical order."""
    numbered = [path for path in _entries(home / SAMPLES) if re.fullmatch(r"[0-9]+\.png", path.name)]
    return sorted(numbered, key=lambda path: int(path.stem))


def _looks_like_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _may_be_image(path: Path) -> bool:
    """Whether a file among a prompt's samples may be an image: anything except notes and hidden files."""
    return path.suffix.lower() not in NOTES and not path.name.startswith(".")


def _prompt(path: Path) -> Prompt:
    """Read a prompt record.

    Raises UsageError for a file that is not a prompt record, MissingError for a pointer to one not downloaded yet.
    """
    if path.is_file():
        refuse_stand_in(path, "prompt record")
    try:
        record = read_record(path)
    except (OSError, DamagedError) as error:
        raise UsageError(f"{path} is not a prompt record: {one_line(error)}") from error
    text, tag = record.get("prompt"), record.get("tag", "")
    if not isinstance(text, str) or not isinstance(tag, str):
        raise UsageError(f"{path} is not a prompt record: 'prompt' and 'tag' must be text")
    return Prompt(text, tag, record)


def places(prompts: list[Prompt]) -> list[tuple[int, int]]:
    """(prompt number, image number) of every row; equal prompts in a row count as images of one prompt."""
    found: list[tuple[int, int]] = []
    number, image = -1, 0
    for row, prompt in enumerate(prompts):
        repeated = row > 0 and prompts[row - 1] == prompt
        number, image = (number, image + 1) if repeated else (number + 1, 0)
        found.append((number, image))
    return found


def begin(folder: Path, task: str, world: str) -> None:
    """Prepare `folder` for images of a task: delete those of an earlier evaluation, with their results and scores."""
    folder.mkdir(parents=True, exist_ok=True)
    for home in _prompt_folders(folder):
        shutil.rmtree(home)
    for path in (*folder.glob("results*.jsonl"), folder / CACHE):
        path.unlink(missing_ok=True)
    origin = {"task": task, "world": world}
    (folder / ORIGIN).write_bytes(json_bytes(origin))


def world_of(folder: Path) -> str | None:
    """The world of the images in a folder written here; None if the folder does not record it."""
    try:
        world = read_record(folder / ORIGIN).get("world")
    except (OSError, DamagedError):
        return None
    return world if isinstance(world, str) else None


def write(folder: Path, prompts: list[Prompt], images_BCHW: Tensor, at: list[tuple[int, int]]) -> None:
    """Add images [B, 3, H, W] in [0, 1] to `folder`, at the positions `at` (see `places`)."""
    from PIL import Image

    for prompt, image, (number, k) in zip(prompts, images_BCHW, at, strict=True):
        home = folder / f"{number:05d}"
        (home / SAMPLES).mkdir(parents=True, exist_ok=True)
        # Metadata read from such a folder contains prompt and tag already; other prompts are given them.
        known = {} if "prompt" in prompt.metadata else {"tag": prompt.stratum, "prompt": prompt.text}
        record = json.dumps(known | prompt.metadata)
        (home / RECORD).write_text(f"{record}\n", encoding="utf-8")
        image_file = Image.fromarray(to_bytes(image))
        image_file.save(home / SAMPLES / f"{k:04d}.png")


def load(path: Path) -> Tensor:
    """An image file as [3, H, W] in [0, 1] (see `from_file`). Raises UsageError if it cannot be read."""
    try:
        return from_file(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a readable image: {one_line(error)}") from error
