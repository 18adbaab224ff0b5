"""COCO detection as in GenEval's evaluator: a Mask2Former with mmdet's pre- and post-processing.

Resizing, padding, mask upsampling, scoring and boxes follow mmdet 2.x's test pipeline for the official configuration
(mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco), where transformers' image processor differs in every one of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bench.errors import UsageError
from bench.lazy import torch, without_gradients
from bench.scoring.pictures import to_bytes
from bench.weights.frozen import load_frozen, weights_name
from tasks.geneval.prompts import COCO

if TYPE_CHECKING:
    from torch import Tensor

LONG_SIDE, SHORT_SIDE, DIVISOR = 1333, 800, 32
PADDING = 128.0
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
UNREAD = re.compile(r"criterion\.|encoder\.(swin\.)?layernorm\.")
"""Parameters of transformers' model that do not affect its logits and are missing from some files."""
CANDIDATES = 100
"""Query-class pairs kept per image, by class probability."""


@dataclass(frozen=True)
class Detection:
    """One object: `label` is COCO's class index, `box` (x1, y1, x2, y2) the mask's extent in the image's pixels."""

    label: int
    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray
    """Bool [H, W], at the size of the image."""


class Detector(Protocol):
    """Anything that detects COCO objects."""

    @property
    def name(self) -> str:
        """Engine, version and weights; part of the scorer's name."""

    def detect(self, images_BCHW: Tensor, floor: float) -> list[list[Detection]]:
        """Objects scored above `floor` in each of the RGB images [B, 3, H, W] in [0, 1]."""


class Mask2FormerDetector:
    """A Mask2Former for COCO instance segmentation: a folder in transformers' format, or a hub id."""

    def __init__(self, source: str, engine: str, device: str = "cpu", precision: str = "float32", batch: int = 4):
        self.source, self.engine, self.device, self.precision = source, engine, device, precision
        self.batch = batch

    @cached_property
    def name(self) -> str:
        """Engine and weights."""
        return f"{self.engine}-{weights_name(self.source, self.precision)}"

    @cached_property
    def model(self):
        """The network, loaded at first use. Raises UsageError if its classes are not COCO's."""
        from transformers import Mask2FormerForUniversalSegmentation

        kind = Mask2FormerForUniversalSegmentation
        model = load_frozen(kind, self.source, self.device, "detector", self.precision, UNREAD)
        require_coco(model.config.id2label, self.source)
        return model

    def detect(self, images_BCHW: Tensor, floor: float) -> list[list[Detection]]:
        """See Detector.detect. Deterministic on one device.

        Raises FloatingPointError if the network's outputs are not finite; an empty list would count as "no objects".
        """
        return [found for part in images_BCHW.split(self.batch) for found in self._detect(part, floor)]

    @without_gradients
    def _detect(self, images_BCHW: Tensor, floor: float) -> list[list[Detection]]:
        height, width = images_BCHW.shape[-2:]
        pixels, (inner_h, inner_w) = prepare(images_BCHW.to(self.device))
        outputs = self.model(pixel_values=pixels.to(self.model.dtype))
        found: list[list[Detection]] = []
        for classes, masks in zip(outputs.class_queries_logits.float(), outputs.masks_queries_logits.float()):
            if not (classes.isfinite().all() and masks.isfinite().all()):
                raise FloatingPointError("the detector gives values that are not finite")
            query, label, probability = candidates(classes, floor)
            if not len(query):
                found.append([])
                continue
            resize = partial(torch.nn.functional.interpolate, mode="bilinear")
            # Like mmdet: to the size of the padded input, without the padding, then to the size of the image.
            padded = resize(masks[query][None], pixels.shape[-2:])
            masks = resize(padded[..., :inner_h, :inner_w], (height, width))[0]
            found.append(instances(label, probability, masks, floor))
        return found


def require_coco(labels: Mapping[int, str], source: str) -> None:
    """Raise UsageError for a detector whose class indices are not those of COCO's 80 classes.

    Only the order of classes is used, but the names show it. Names that transformers generated (LABEL_7) say nothing,
    and releases spell some names differently. So no COCO name may have a different index, and at least half of the
    names must be COCO's.
    """
    if len(labels) != len(COCO.names):
        raise UsageError(f"the detector {source!r} has {len(labels)} classes; GenEval needs COCO's {len(COCO.names)}")
    places = {_letters(name): place for place, name in enumerate(COCO.names)}
    places |= {_letters(other): places[_letters(name)] for other, name in COCO.aliases.items()}
    named = {place: name for place, name in labels.items() if not re.fullmatch("LABEL_[0-9]+", name)}
    found = {place: places[_letters(name)] for place, name in named.items() if _letters(name) in places}
    for place, name in named.items():
        if found.get(place, place) != place or 2 * len(found) < len(named):
            raise UsageError(
                f"the detector {source!r} calls its class {place} {name!r}, where COCO has {COCO.names[place]!r}: "
                "GenEval needs COCO's 80 classes in COCO's order"
            )


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def prepare(images_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Images in [0, 1] -> network input, and the (height, width) of the resized image in its upper left corner.

    Images are scaled to fit (1333, 800) with OpenCV's bilinear interpolation on bytes, padded with grey to multiples
    of 32, and then normalised, padding included, as mmdet pads first.
    """
    import cv2

    height, width = images_BCHW.shape[-2:]
    scale = min(LONG_SIDE / max(height, width), SHORT_SIDE / min(height, width))
    inner = int(height * scale + 0.5), int(width * scale + 0.5)
    size = inner[::-1]  # OpenCV's order is (width, height)
    scaled = [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in to_bytes(images_BCHW)]
    bytes_BHWC = torch.from_numpy(np.stack(scaled)).to(images_BCHW.device)
    resized = bytes_BHWC.permute(0, 3, 1, 2).float()
    missing = [-side % DIVISOR for side in inner]
    right_and_below = (0, missing[1], 0, missing[0])
    padded = torch.nn.functional.pad(resized, right_and_below, value=PADDING)
    mean = torch.tensor(MEAN, device=padded.device).view(3, 1, 1)
    std = torch.tensor(STD, device=padded.device).view(3, 1, 1)
    return (padded - mean) / std, inner


def candidates(logits_QK: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """(query, class, probability) of the best query-class pairs; the last class, "no object", is excluded.

    A score is the probability times the mask's confidence, which is at most 1, so pairs at or below `floor` are dropped
    before their masks are computed.
    """
    probabilities = logits_QK.softmax(-1)[:, :-1]
    best, index = probabilities.flatten().topk(min(CANDIDATES, probabilities.numel()))
    index, best = index[best > floor], best[best > floor]
    return index // probabilities.shape[1], index % probabilities.shape[1], best


def instances(label_N: Tensor, probability_N: Tensor, logits_NHW: Tensor, floor: float) -> list[Detection]:
    """Detections scored above `floor`. A score is the probability times the mean sigmoid over the mask's pixels."""
    masks = logits_NHW > 0
    area = masks.flatten(1).sum(1)
    confidence = (logits_NHW.sigmoid() * masks).flatten(1).sum(1) / (area + 1e-6)
    scores = probability_N * confidence
    found = []
    kept = (scores > floor).tolist()  # compared in float32, as in the official evaluator
    for keep, label, score, mask in zip(kept, label_N.tolist(), scores.tolist(), masks.cpu().numpy()):
        if keep:
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            left, top = float(columns[0]), float(rows[0])
            right, bottom = float(columns[-1] + 1), float(rows[-1] + 1)
            box = (left, top, right, bottom)
            found.append(Detection(label, box, score, mask))
    return found
