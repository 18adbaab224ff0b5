"""Folders of pictures with captions, as users have them (methods/picture_folder.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.registry import find
from bench.scoring.loading import load_task
from tests.once import once

PAIR = ("chosen_file_name", "rejected_file_name")


def captions(task: str, count: int) -> list[str]:
    """Captions in micro's words that are no held-out prompts."""
    return [prompt.text for prompt in load_task(task, "micro").prompts("train")[:count]]


def write_folder(
    folder: Path, texts: list[str], columns: tuple[str, ...] = ("file_name", *PAIR), seed: int = 0
) -> Path:
    """One row per caption, with a random picture per column; by default both kinds of methods can read it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = []
    for number, text in enumerate(texts):
        names = {column: f"{number}-{column}.png" for column in columns}
        for name in names.values():
            # Smooth, as noise would be lost on micro's codec.
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            small.resize((32, 32), Image.Resampling.BILINEAR).save(folder / name)
        lines.append(json.dumps({"text": text} | names))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def data(root: Path, tasks: tuple[str, ...], rows: int = 7) -> list[str]:
    """Settings that give every task a folder under `root`, made if it is missing."""
    for seed, task in enumerate(tasks):
        if not (root / task).exists():
            write_folder(root / task, captions(task, rows), seed=seed)
    return [f"params.data.{task}={root / task}" for task in tasks]


def needs_data(method: str) -> bool:
    """Whether a method trains on the user's pictures."""
    return "data" in find("method", method).Options.model_fields


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for every task of micro, the same in all tests. Not to be changed."""
    return once(factory, "pictures", lambda root: data(root, ("geneval", "ocr", "pickscore")))
