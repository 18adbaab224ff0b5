"""A picture whose objects are known: a detector that no longer sees them has wrong weights, or is computed wrongly.

A detector's folder may hold canary.png and canary.json (what was found in it when the weights were converted); it is
looked at again before anything is scored.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError, UsageError, one_line
from bench.files import write_atomic
from bench.pictures import from_file, to_bytes
from tasks.geneval.prompts import COCO
from tasks.geneval.rules import COUNTING_THRESHOLD

if TYPE_CHECKING:
    from tasks.geneval.detector import Detection, Mask2FormerDetector

PICTURE, RECORD = "canary.png", "canary.json"
OVERLAP, SCORE_SHIFT = 0.9, 0.05
"""How far a box and a confidence may move, half precision included."""


def expectations(text: str) -> dict[str, int]:
    """ "cat=2,remote=2" -> how many of each. Raises UsageError."""
    wanted = {}
    for part in text.split(","):
        name, equals, count = part.strip().rpartition("=")
        if not equals or not count.isdecimal() or name not in COCO.names:
            raise UsageError(f"the canary's objects are COCO classes with counts, cat=2,remote=2, not {part!r}")
        wanted[name] = int(count)
    return wanted


def keep(detector: "Mask2FormerDetector", picture: Path, wanted: dict[str, int], folder: Path) -> None:
    """Make `picture` the canary of a converted folder. Raises BenchError if the detector does not see what is there."""
    from PIL import Image

    try:
        image = from_file(picture)
    except (OSError, ValueError) as error:
        raise UsageError(f"{picture} is no picture: {one_line(error)}") from error
    found = detector.look(image[None], COUNTING_THRESHOLD)[0]
    counts = {name: sum(COCO.names[d.label] == name for d in found) for name in wanted}
    if counts != wanted:
        raise BenchError(f"the converted detector finds {counts} in {picture}, not {wanted}: not the official weights?")
    Image.fromarray(to_bytes(image)).save(folder / PICTURE)
    record = [{"class": COCO.names[d.label], "box": d.box, "score": d.score} for d in found]
    write_atomic(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def listen(detector: "Mask2FormerDetector", folder: Path) -> None:
    """Raise BenchError if a detector sees something else in its canary than when it was converted."""
    record = json.loads((folder / RECORD).read_text())
    found = detector.look(from_file(folder / PICTURE)[None], COUNTING_THRESHOLD - SCORE_SHIFT)[0]
    for known in record:
        if not any(same(known, detection) for detection in found):
            seen = ", ".join(f"{COCO.names[d.label]} {d.score:.2f}" for d in found) or "nothing"
            raise BenchError(
                f"the detector in {folder} no longer finds the {known['class']} of its canary picture (but {seen}): "
                "its weights have changed, or this version of torch or transformers computes something else"
            )


def same(known: dict, found: "Detection") -> bool:
    """Whether a detection is the recorded one."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = known["box"], found.box
    inner = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - inner
    near = abs(known["score"] - found.score) < SCORE_SHIFT
    return COCO.names[found.label] == known["class"] and inner > OVERLAP * union and near
