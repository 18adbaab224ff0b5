"""The canary check of a detector: an image with known objects, which correct weights must keep finding.

A detector's folder may contain canary.png and canary.json, the objects found in it when the weights were converted.
The detector runs on the canary again before anything is scored; if it misses an object, the weights have changed or
the libraries compute something different.
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
"""Least overlap (intersection over union) of a box, and change of a confidence below which it is the same object.
They allow for half precision."""


class CheckedDetector:
    """A detector that is checked on its canary before its first use. Without a canary its name ends in "-unchecked"."""

    def __init__(self, detector: Detector, source: str):
        """`source` is the folder of the detector's weights, or a hub id, which never has a canary."""
        self.detector, self.folder = detector, Path(source)

    @cached_property
    def name(self) -> str:
        """The detector's name, with "-unchecked" if there is no canary. Raises DamagedError for a damaged record."""
        if not self._kept:
            return f"{self.detector.name}-unchecked"
        known_objects(self.folder)  # a damaged or empty record must not pass for a check
        return self.detector.name

    @property
    def _kept(self) -> bool:
        return (self.folder / RECORD).is_file()

    @cached_property
    def _listened(self) -> bool:
        if self._kept:
            listen(self.detector, self.folder)
        return True

    def detect(self, images_BCHW: Tensor, floor: float) -> list[list[Detection]]:
        """The detector's answer (see Detector.detect). Raises BenchError if the canary check fails."""
        _ = self._listened  # runs the check once
        return self.detector.detect(images_BCHW, floor)


def expectations(text: str) -> dict[str, int]:
    """Parse "cat=2,tv remote=2" -> count by GenEval's class name; COCO's own names are accepted too.

    Raises UsageError for unknown names, names given twice and counts below 1.
    """
    wanted: dict[str, int] = {}
    for part in text.split(","):
        name, equals, count = (piece.strip() for piece in part.rpartition("="))
        if not equals or not re.fullmatch(r"0*[1-9][0-9]*", count):
            raise UsageError(
                f"the canary's objects are COCO classes with counts of 1 or more, cat=2,tv remote=2, not {part!r}"
            )
        name = RENAMED.get(name, name)
        if name not in COCO.names:
            raise unknown("name of the COCO classes", name, COCO.names)
        if name in wanted:
            raise UsageError(f"the canary's objects list {name!r} twice")
        wanted[name] = int(count)
    return wanted


def keep(detector: Detector, picture: Path, wanted: dict[str, int], folder: Path) -> None:
    """Make `picture` the canary of a converted folder.

    Raises UsageError for an unreadable image, BenchError if the detector does not find exactly the `wanted` objects.
    """
    from PIL import Image

    try:
        image = from_file(picture)
    except (OSError, ValueError) as error:
        raise UsageError(f"{picture} is not a readable image: {one_line(error)}") from error
    found = _seen(detector, image, COUNTING_THRESHOLD)
    counts = {name: sum(COCO.names[d.label] == name for d in found) for name in wanted}
    if counts != wanted:
        raise BenchError(
            f"the converted detector finds {counts} in {picture}, not {wanted}: "
            "these are probably not the official weights"
        )
    Image.fromarray(to_bytes(image)).save(folder / PICTURE)
    record = [{"class": COCO.names[d.label], "box": d.box, "score": d.score} for d in found]
    write_atomic(folder / RECORD, json_bytes(record))


def listen(detector: Detector, folder: Path) -> None:
    """Raise BenchError if a detector misses an object that it found in its canary when it was converted."""
    record, image = known_objects(folder), _picture(folder)
    found = _seen(detector, image, COUNTING_THRESHOLD - SCORE_SHIFT)
    for known in record:
        if not any(same(known, detection) for detection in found):
            seen = ", ".join(f"{COCO.names[d.label]} {d.score:.2f}" for d in found) or "nothing"
            raise BenchError(
                f"the detector in {folder} no longer finds the {known['class']} of its canary image "
                f"(found: {seen}): "
                "its weights have changed, or this version of torch or transformers computes different values"
            )


def _seen(detector: Detector, image_CHW: Tensor, floor: float) -> list[Detection]:
    try:
        return detector.detect(image_CHW[None], floor)[0]
    except FloatingPointError as error:
        raise BenchError(f"the detector fails on the canary image: {one_line(error)}") from error


def known_objects(folder: Path) -> list[dict]:
    """The objects found when the weights were converted. Raises DamagedError for an unusable record."""
    record = read_json(folder / RECORD)
    # A NaN in a box or score fails the comparison with 0, and text fails the addition.
    try:
        if not isinstance(record, list) or not record:
            raise ValueError("no objects")
        for known in record:
            x1, y1, x2, y2 = known["box"]
            total = known["score"] + x1 + y1 + x2 + y2
            if not isinstance(known["class"], str) or not total > 0:
                raise ValueError("an object without extent or score")
    except (KeyError, TypeError, ValueError) as error:
        what = "is not a list of objects with class, box and score: convert the detector again"
        raise DamagedError(f"{folder / RECORD} {what}") from error
    return record


def _picture(folder: Path) -> Tensor:
    try:
        return from_file(folder / PICTURE)
    except (OSError, ValueError) as error:
        raise DamagedError(f"the canary image {folder / PICTURE} cannot be read: {one_line(error)}") from error


def same(known: dict, found: Detection) -> bool:
    """Whether a detection is the recorded object: same class, overlapping box and similar confidence."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = known["box"], found.box
    width = max(0.0, min(a2, c2) - max(a1, c1))
    height = max(0.0, min(b2, d2) - max(b1, d1))
    inner = width * height
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - inner
    near = abs(known["score"] - found.score) < SCORE_SHIFT
    return COCO.names[found.label] == known["class"] and inner > OVERLAP * union and near
