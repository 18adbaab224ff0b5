"""Folders of pictures in GenEval's official layout, which its evaluator reads and any tool can write.

DIR/00000/metadata.jsonl holds one JSON object with the prompt (and what the scorer needs to know of it),
DIR/00000/samples/0000.png and so on its pictures. DIR/origin.json says of what was made here for which task and world.
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
"""Where runs keep them: RUN/pictures/TASK."""
RECORD, SAMPLES, ORIGIN = "metadata.jsonl", "samples", "origin.json"
RESULTS, CACHE = "results.jsonl", "scores.sqlite"
"""What `bench score` writes beside the pictures; results of most tasks are in results-<task>.jsonl."""
JUDGED = "geneval"
"""The task whose results are verdicts, as GenEval's evaluator writes and its other scripts read them."""
SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".jxl",
    ".avif", ".heic", ".heif", ".ppm", ".pgm",
)  # fmt: skip
"""Names that end so are pictures, whether or not they are called as the layout wants."""
NOTES = (".txt", ".md", ".log", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".html", ".db", ".ini")
"""Names that end so are none, even among pictures."""


@dataclass(frozen=True)
class Sample:
    """One picture file and its prompt."""

    path: Path
    prompt: Prompt


def identity(tag: str, text: str, metadata: object) -> str:
    """What tells a prompt from others, wherever its pictures are counted: one tag, one text, the same metadata.

    No place in a list or among folders: a prompt may come again later, and tools differ in what they put in one folder.
    """
    return json.dumps([tag, text, metadata or None], sort_keys=True, default=repr)


def is_verdict(value: object) -> bool:
    """Whether a value is true or false, as JSON or as the numbers 1 and 0; text that says so is neither."""
    return isinstance(value, bool | int | float) and value in (True, False)


def read(folder: Path) -> list[Sample]:
    """Every picture under `folder`, by prompt number and picture number. Raises UsageError for another layout.

    Like GenEval's evaluator it takes numbered folders and pictures called NUMBER.png; `left_out` has the others. Two of
    one number are refused: the folder was written twice, in two ways.
    """
    samples = []
    homes = _homes(folder)
    _check_numbers(homes)
    for home in homes:
        prompt, pictures = _prompt(home / RECORD), _pictures(home)
        _check_numbers(pictures)
        samples += [Sample(path, prompt) for path in pictures]
    if not samples:
        others = left_out(folder)
        found = f"; there is {others[0]}" if others else ""
        raise UsageError(f"no pictures in GenEval's layout under {folder}: DIR/00000/samples/0000.png{found}")
    return samples


def left_out(folder: Path) -> list[Path]:
    """What `read` passes over although it looks like part of the layout: pictures and folders with other names, and
    prompts without a picture."""
    homes = _homes(folder)
    found = []
    for home in _entries(folder):
        if home in homes:
            taken = set(_pictures(home))
            others = [path for path in _entries(home / SAMPLES) if path not in taken and _may_be_a_picture(path)]
            others += [path for path in _entries(home) if _looks_like_a_picture(path) or _is_home(path)]
            found += others or ([] if taken else [home])
        elif _looks_like_a_picture(home) or _is_home(home) or _has_homes(home):
            found.append(home)
    return found


def _is_home(path: Path) -> bool:
    """Whether it holds a prompt, or pictures of one."""
    return (path / RECORD).is_file() or (path / SAMPLES).is_dir()


def _has_homes(folder: Path) -> bool:
    try:
        return any(_is_home(inner) for inner in _homes(folder))
    except UsageError:  # another's, that may not be read
        return False


def _check_numbers(paths: list[Path]) -> None:
    """Raise UsageError for two neighbours of the same number."""
    for one, other in pairwise(paths):
        if int(one.stem) == int(other.stem):
            raise UsageError(f"{one} and {other.name} have the same number: take one of them away")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {one_line(error)}") from error


def _homes(folder: Path) -> list[Path]:
    numbered = [path for path in _entries(folder) if re.fullmatch("[0-9]+", path.name)]
    return sorted(numbered, key=lambda path: int(path.name))


def _pictures(home: Path) -> list[Path]:
    numbered = [path for path in _entries(home / SAMPLES) if re.fullmatch(r"[0-9]+\.png", path.name)]
    return sorted(numbered, key=lambda path: int(path.stem))


def _looks_like_a_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _may_be_a_picture(path: Path) -> bool:
    """Of what lies among pictures: anything but notes and what is hidden."""
    return path.suffix.lower() not in NOTES and not path.name.startswith(".")


def _prompt(path: Path) -> Prompt:
    """Raises UsageError for a file that is no prompt record, MissingError for one that is still to be fetched."""
    if path.is_file():
        refuse_stand_in(path, "prompt record")
    try:
        record = read_record(path)
    except (OSError, DamagedError) as error:
        raise UsageError(f"{path} is no prompt record: {one_line(error)}") from error
    text, tag = record.get("prompt"), record.get("tag", "")
    if not isinstance(text, str) or not isinstance(tag, str):
        raise UsageError(f"{path} is no prompt record: 'prompt' and 'tag' are to be text")
    return Prompt(text, tag, record)


def places(prompts: list[Prompt]) -> list[tuple[int, int]]:
    """(prompt number, picture number) of every row: equal neighbouring prompts are one prompt's pictures."""
    found: list[tuple[int, int]] = []
    for row, prompt in enumerate(prompts):
        if row and prompts[row - 1] == prompt:
            found.append((found[-1][0], found[-1][1] + 1))
        else:
            found.append((found[-1][0] + 1 if found else 0, 0))
    return found


def begin(folder: Path, task: str, world: str) -> None:
    """Make `folder` ready for pictures of a task: those of an earlier evaluation go, with what was said of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for home in _homes(folder):
        shutil.rmtree(home)
    for path in (*folder.glob("results*.jsonl"), folder / CACHE):
        path.unlink(missing_ok=True)
    (folder / ORIGIN).write_bytes(json_bytes({"task": task, "world": world}))


def world_of(folder: Path) -> str | None:
    """The kind of pictures in a folder that was written here; None where nothing says it."""
    try:
        world = read_record(folder / ORIGIN).get("world")
    except (OSError, DamagedError):
        return None
    return world if isinstance(world, str) else None


def write(folder: Path, prompts: list[Prompt], images_BCHW: Tensor, at: list[tuple[int, int]]) -> None:
    """Add pictures [B, 3, H, W] in [0, 1] to `folder`, each at its place (see `places`)."""
    from PIL import Image

    for prompt, image, (number, k) in zip(prompts, images_BCHW, at, strict=True):
        home = folder / f"{number:05d}"
        (home / SAMPLES).mkdir(parents=True, exist_ok=True)
        known = prompt.metadata if "prompt" in prompt.metadata else {"tag": prompt.stratum, "prompt": prompt.text}
        (home / RECORD).write_text(json.dumps(known | prompt.metadata) + "\n", encoding="utf-8")
        Image.fromarray(to_bytes(image)).save(home / SAMPLES / f"{k:04d}.png")


def load(path: Path) -> Tensor:
    """A picture file as [3, H, W] in [0, 1], RGB, upright (see `from_file`). Raises UsageError if it is none."""
    try:
        return from_file(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no picture that can be scored: {one_line(error)}") from error
