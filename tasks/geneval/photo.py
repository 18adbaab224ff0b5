"""Reading photographs for GenEval: a COCO detector, and a colour judge for objects whose colour the prompt gives."""

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
"""Setting that gives the detector's weights -> engine in the scorer's name. Only scores of the converted official
checkpoint are comparable with published ones: facebook/mask2former-swin-small-coco-instance was trained separately."""
BATCH = 4
"""Images per forward of the detector; one resized to 800 x 800 takes nearly 1 GB."""
CLIP = "openai/clip-vit-large-patch14"
SOURCES = {
    **{source: f"folder or hub id of the detector's weights; engine {engine}" for source, engine in ENGINES.items()},
    "colours": f"CLIP model that classifies colours; default {CLIP}",
    **devices(BATCH),
}
CURE = (
    "convert the official checkpoint (python -m tasks.geneval.mmdet_weights CHECKPOINT.pth FOLDER) and set "
    "scorers.geneval.converted=FOLDER, or set scorers.geneval.facebook to a folder or hub id of "
    "facebook/mask2former-swin-small-coco-instance, whose scores are not comparable with published ones"
)


class PhotoReader:
    """Images [B, 3, H, W] and their prompt records -> the objects that GenEval's rules judge."""

    def __init__(self, detector: Detector, judge: ColourJudge):
        self.detector, self.judge = detector, judge

    @property
    def name(self) -> str:
        """Names of the detector and of the colour judge."""
        return f"{self.detector.name}+{self.judge.name}"

    def __call__(self, images_BCHW: Tensor, records: list[dict]) -> list[Objects]:
        """Objects by class name for each image. Equally confident ones are in the official evaluator's order."""
        found = self.detector.detect(images_BCHW, THRESHOLD)
        return [self._read(*part) for part in zip(images_BCHW, records, found, strict=True)]

    def _read(self, image_CHW: Tensor, record: dict, detections: list[Detection]) -> Objects:
        by_name: dict[str, list[Detection]] = {}
        # Of equally confident detections the later comes first: the official evaluator reads an ascending sort
        # backwards. Its numpy 1.23 keeps the order of up to 16 equal values; newer versions' order depends on the CPU.
        ascending = sorted(detections, key=lambda d: np.float32(d.score))
        for detection in sorted(ascending[::-1], key=lambda d: d.label):
            by_name.setdefault(COCO.names[detection.label], []).append(detection)
        asked: dict[str, int] = {}
        for clause in record.get("include", []):
            if "color" in clause:  # the rules read only the `count` most confident objects
                asked[clause["class"]] = max(clause["count"], asked.get(clause["class"], 0))
        objects: Objects = {}
        for name, mine in by_name.items():
            seen = self.judge.judge(image_CHW, mine[: asked.get(name, 0)], name)
            colours = seen + [""] * (len(mine) - len(seen))
            pairs = zip(mine, colours)
            objects[name] = [DetectedObject(d.box, d.score, colour) for d, colour in pairs]
        return objects


def photo_reader(sources: dict[str, str]) -> PhotoReader:
    """The reader that `scorers.geneval` describes. Raises MissingError, with instructions, if no detector is set."""
    engine = next((engine for engine in ENGINES if engine in sources), None)
    if engine is None:
        raise MissingError(f"GenEval on photographs needs a detector: {CURE}")
    weights = sources[engine]
    detector = Mask2FormerDetector(weights, ENGINES[engine], **placed(sources, BATCH))
    judge = ClipColourJudge(sources.get("colours", CLIP), COCO.colours, sources)
    return PhotoReader(CheckedDetector(detector, weights), judge)
