"""A picture whose objects are known: a detector that no longer sees them has wrong weights, or is computed wrongly.

A detector's folder may hold canary.png and canary.json (what was found in it when the weights were converted); it is
looked at again before anything is scored.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError, DamagedError, UsageError, one_line, unknown
from bench.scoring.pictures import from_file, to_bytes
from bench.system.files import json_bytes, read_json, write_atomic
from tasks.geneval.detector import Detection, Detector
from tasks.geneval.prompts import COCO, RENAMED
from tasks.geneval.rules import COUNTING_THRESHOLD

if TYPE_CHECKING:
    from torch import Tensor

PICTURE, RECORD = "canary.png", "canary.json"
OVERLAP, SCORE_SHIFT = 0.9, 0.05
"""How far a box and a confidence may move, half precision included."""


class CheckedDetector:
    """A detector whose weights a canary picture beside them vouches for; without one its name says "unchecked"."""

    def __init__(self, detector: Detector, source: str):
        """`source` is the folder of the detector's weights, or a hub id, which has no canary."""
        self.detector, self.folder = detector, Path(source)

    @cached_property
    def name(self) -> str:
        """The detector's, and whether it is unchecked."""
        if self._kept:
            known_objects(self.folder)  # a record that vouches for nothing is no check
        return f"{self.detector.name}{'' if self._kept else '-unchecked'}"

    @property
    def _kept(self) -> bool:
        return (self.folder / RECORD).is_file()

    @cached_property
    def _listened(self) -> bool:
        if self._kept:
            listen(self.detector, self.folder)
        return True

    def detect(self, images_BCHW: Tensor, floor: float) -> list[list[Detection]]:
        """The detector's answer. Raises BenchError if the canary picture says that the weights are wrong."""
        _ = self._listened
        return self.detector.detect(images_BCHW, floor)


def expectations(text: str) -> dict[str, int]:
    """ "cat=2,tv remote=2" -> how many of each, by GenEval's names; COCO's own are taken too. Raises UsageError."""
    wanted: dict[str, int] = {}
    for part in text.split(","):
        name, equals, count = (piece.strip() for piece in part.rpartition("="))
        if not equals or not re.fullmatch(r"0*[1-9][0-9]*", count):
            raise UsageError(
                f"the canary's objects are COCO classes with counts from 1 on, cat=2,tv remote=2, not {part!r}"
            )
        name = RENAMED.get(name, name)
        if name not in COCO.names:
            raise unknown("name of the COCO classes", name, COCO.names)
        if name in wanted:
            raise UsageError(f"the canary's objects name {name!r} twice")
        wanted[name] = int(count)
    return wanted


def keep(detector: Detector, picture: Path, wanted: dict[str, int], folder: Path) -> None:
    """Make `picture` the canary of a converted folder. Raises BenchError if the detector does not see what is there."""
    from PIL import Image

    try:
        image = from_file(picture)
    except (OSError, ValueError) as error:
        raise UsageError(f"{picture} is no picture: {one_line(error)}") from error
    found = _seen(detector, image, COUNTING_THRESHOLD)
    counts = {name: sum(COCO.names[d.label] == name for d in found) for name in wanted}
    if counts != wanted:
        raise BenchError(f"the converted detector finds {counts} in {picture}, not {wanted}: not the official weights?")
    Image.fromarray(to_bytes(image)).save(folder / PICTURE)
    record = [{"class": COCO.names[d.label], "box": d.box, "score": d.score} for d in found]
    write_atomic(folder / RECORD, json_bytes(record))


def listen(detector: Detector, folder: Path) -> None:
    """Raise BenchError if a detector sees something else in its canary than when it was converted."""
    record, image = known_objects(folder), _picture(folder)
    found = _seen(detector, image, COUNTING_THRESHOLD - SCORE_SHIFT)
    for known in record:
        if not any(same(known, detection) for detection in found):
            seen = ", ".join(f"{COCO.names[d.label]} {d.score:.2f}" for d in found) or "nothing"
            raise BenchError(
                f"the detector in {folder} no longer finds the {known['class']} of its canary picture (but {seen}): "
                "its weights have changed, or this version of torch or transformers computes something else"
            )


def _seen(detector: Detector, image_CHW: Tensor, floor: float) -> list[Detection]:
    try:
        return detector.detect(image_CHW[None], floor)[0]
    except FloatingPointError as error:
        raise BenchError(f"the canary picture cannot be looked at: {one_line(error)}") from error


def known_objects(folder: Path) -> list[dict]:
    """What was found when the weights were converted. Raises DamagedError."""
    record = read_json(folder / RECORD)
    try:
        if not isinstance(record, list) or not record:
            raise ValueError("it names no object")
        for known in record:
            x1, y1, x2, y2 = known["box"]
            if not isinstance(known["class"], str) or not known["score"] + x1 + y1 + x2 + y2 > 0:
                raise ValueError("an object without extent")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{folder / RECORD} is no list of objects with class, box and score") from error
    return record


def _picture(folder: Path) -> Tensor:
    try:
        return from_file(folder / PICTURE)
    except (OSError, ValueError) as error:
        raise DamagedError(f"the canary picture {folder / PICTURE} cannot be read: {one_line(error)}") from error


def same(known: dict, found: Detection) -> bool:
    """Whether a detection is the recorded one."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = known["box"], found.box
    inner = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - inner
    near = abs(known["score"] - found.score) < SCORE_SHIFT
    return COCO.names[found.label] == known["class"] and inner > OVERLAP * union and near
