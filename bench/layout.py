"""Folders of pictures in GenEval's official layout, which its evaluator reads and any tool can write.

DIR/00000/metadata.jsonl holds one JSON object with the prompt (and what the scorer needs to know of it),
DIR/00000/samples/0000.png and so on its pictures.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.errors import UsageError, one_line
from bench.pictures import from_file, to_bytes
from bench.task import Prompt

PICTURES = "pictures"
"""Where runs keep them: RUN/pictures/TASK."""


@dataclass(frozen=True)
class Sample:
    """One picture file and its prompt."""

    path: Path
    prompt: Prompt


def read(folder: Path) -> list[Sample]:
    """Every picture under `folder`, by prompt number and picture number. Raises UsageError for another layout."""
    samples = []
    for home in sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        try:
            record = json.loads((home / "metadata.jsonl").read_text())
            prompt = Prompt(record["prompt"], record.get("tag", ""), record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{home}/metadata.jsonl is no prompt record: {one_line(error)}") from error
        pictures = [p for p in (home / "samples").glob("*.png") if re.fullmatch(r"\d+", p.stem)]
        samples += [Sample(path, prompt) for path in sorted(pictures, key=lambda p: int(p.stem))]
    if not samples:
        raise UsageError(f"no pictures in GenEval's layout under {folder}: DIR/00000/samples/0000.png")
    return samples


def places(prompts: list[Prompt]) -> list[tuple[int, int]]:
    """(prompt number, picture number) of every row: equal neighbouring prompts are one prompt's pictures."""
    found: list[tuple[int, int]] = []
    for row, prompt in enumerate(prompts):
        if row and prompts[row - 1] == prompt:
            found.append((found[-1][0], found[-1][1] + 1))
        else:
            found.append((found[-1][0] + 1 if found else 0, 0))
    return found


def write(folder: Path, prompts: list[Prompt], images_BCHW: Tensor, at: list[tuple[int, int]]) -> None:
    """Add pictures [B, 3, H, W] in [0, 1] to `folder`, each at its place (see `places`)."""
    from PIL import Image

    for prompt, image, (number, k) in zip(prompts, images_BCHW, at, strict=True):
        home = folder / f"{number:05d}"
        (home / "samples").mkdir(parents=True, exist_ok=True)
        record = prompt.metadata if "prompt" in prompt.metadata else {"tag": prompt.stratum, "prompt": prompt.text}
        (home / "metadata.jsonl").write_text(json.dumps(record) + "\n")
        Image.fromarray(to_bytes(image)).save(home / "samples" / f"{k:04d}.png")


def load(path: Path) -> Tensor:
    """A picture file as [3, H, W] in [0, 1], RGB, upright (EXIF applied). Raises UsageError if it is none."""
    try:
        return from_file(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no picture: {one_line(error)}") from error
