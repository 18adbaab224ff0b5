"""Reading photographs for GenEval: a COCO detector, and a colour judge for the objects whose colour is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.errors import MissingError
from tasks.clip import devices, placed
from tasks.geneval.canary import CheckedDetector
from tasks.geneval.colours import ClipColourJudge, ColourJudge
from tasks.geneval.detector import Detection, Detector, Mask2FormerDetector
from tasks.geneval.prompts import COCO
from tasks.geneval.rules import THRESHOLD, DetectedObject, Objects

if TYPE_CHECKING:
    from torch import Tensor

ENGINES = {"converted": "hf-converted", "facebook": "hf-facebook"}
"""Source of the detector's weights -> engine in the score's name. Only the converted official checkpoint gives figures
that compare with published ones: facebook/mask2former-swin-small-coco-instance was trained elsewhere."""
BATCH = 4
"""An 800 x 800 picture takes the detector nearly a gigabyte."""
CLIP = "openai/clip-vit-large-patch14"
SOURCES = {
    **{source: f"detector's weights, engine {engine}" for source, engine in ENGINES.items()},
    "colours": f"CLIP model that judges colours; default {CLIP}",
    **devices(BATCH),
}
CURE = (
    "convert the official checkpoint (python -m tasks.geneval.mmdet_weights CHECKPOINT.pth FOLDER) and set "
    "scorers.geneval.converted=FOLDER, or set scorers.geneval.facebook to a folder or hub id of "
    "facebook/mask2former-swin-small-coco-instance, whose figures are not comparable"
)


class PhotoReader:
    """Pictures [B, 3, H, W] and their prompt records -> the objects that GenEval's rules judge."""

    def __init__(self, detector: Detector, judge: ColourJudge):
        self.detector, self.judge = detector, judge

    @property
    def name(self) -> str:
        return f"{self.detector.name}+{self.judge.name}"

    def __call__(self, images_BCHW: Tensor, records: list[dict]) -> list[Objects]:
        found = self.detector.detect(images_BCHW, THRESHOLD)
        return [self._read(*part) for part in zip(images_BCHW, records, found, strict=True)]

    def _read(self, image_CHW: Tensor, record: dict, detections: list[Detection]) -> Objects:
        by_name: dict[str, list[Detection]] = {}
        # Of equally confident ones the later comes first: officially an ascending sort is read backwards (numpy 1.23's,
        # which keeps the order of up to 16 equals; newer ones order them by the machine).
        for detection in sorted(sorted(detections, key=lambda d: np.float32(d.score))[::-1], key=lambda d: d.label):
            by_name.setdefault(COCO.names[detection.label], []).append(detection)
        asked: dict[str, int] = {}
        for clause in record.get("include", []):
            if "color" in clause:  # the rules look at the most confident `count` alone
                asked[clause["class"]] = max(clause["count"], asked.get(clause["class"], 0))
        objects: Objects = {}
        for name, mine in by_name.items():
            seen = self.judge.judge(image_CHW, mine[: asked.get(name, 0)], name)
            colours = seen + [""] * (len(mine) - len(seen))
            objects[name] = [DetectedObject(d.box, d.score, colour) for d, colour in zip(mine, colours)]
        return objects


def photo_reader(sources: dict[str, str]) -> PhotoReader:
    """The reader that `scorers.geneval` describes. Raises MissingError, with the cure, where no detector is named."""
    engine = next((engine for engine in ENGINES if engine in sources), None)
    if engine is None:
        raise MissingError(f"GenEval on photographs needs a detector: {CURE}")
    detector = Mask2FormerDetector(sources[engine], ENGINES[engine], **placed(sources, BATCH))
    checked = CheckedDetector(detector, sources[engine])
    return PhotoReader(checked, ClipColourJudge(sources.get("colours", CLIP), COCO.colours, sources))
