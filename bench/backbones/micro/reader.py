"""Detecting shapes and reading text in micro images, by least-squares fits of templates to lattice cells.

Every template is a coverage mask m in [0, 1]; a patch is modelled as (1 - m) ground + m paint with two free colours.
The evidence is the fraction of the patch's variance that the best fit explains. The variance of white noise, estimated
from the image, is subtracted from both variances, so that a noisy image gives the same result as a clean one as long as
a person could read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bench.backbones.micro.glyphs import GLYPHS
from bench.backbones.micro.world import BLOCK, CANVAS, CELL, COLOURS, DISTANT_SIZE, GROUNDS, SHAPES, shape_masks
from bench.errors import UsageError
from bench.lazy import torch, without_gradients

if TYPE_CHECKING:
    from torch import Tensor

MIN_CONTRAST = 0.2
"""Minimum Euclidean distance between paint and ground, in RGB from 0 to 1."""
SHAPE_EVIDENCE, SHAPE_SLOPE = 0.55, 0.06
"""Midpoint and width of the sigmoid from explained variance to a shape's confidence."""
GLYPH_EVIDENCE = 0.5
"""Minimum explained variance for a character."""
CONFIDENT = 0.5
"""Confidence above which a found shape counts."""
NEAR, DISTANT = "near", "distant"


@dataclass(frozen=True)
class Mark:
    """A detected shape."""

    shape: str
    colour: str
    """The palette colour nearest to the fitted paint."""
    box: tuple[float, float, float, float]
    """Tight bounding box (x1, y1, x2, y2) in pixels."""
    score: float
    """Confidence from 0 to 1."""
    left: int
    """Left edge of its block in pixels."""
    top: int
    """Top edge of its block in pixels."""


class _Templates:
    """Least-squares fits of T masks on patches of the same size."""

    def __init__(self, masks: dict[str, np.ndarray]):
        self.names = list(masks)
        m = torch.from_numpy(np.stack(list(masks.values()))).flatten(1)  # [T, P]
        design = torch.stack([1 - m, m], -1).double()  # [T, P, 2]
        self.gram = (design.mT @ design).float()
        self.solve = torch.linalg.pinv(design).float()  # [T, 2, P]

    def fit(self, patches_BPC: Tensor, noise_B: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, P, 3] and noise variances [B] -> colours [B, T, 2 (ground, paint), 3], explained share [B, T]."""
        colours = torch.einsum("tkp,bpc->btkc", self.solve, patches_BPC)
        fitted = torch.einsum("btkc,tkl,btlc->bt", colours, self.gram, colours)
        power = patches_BPC.square().sum((1, 2))
        values = patches_BPC[0].numel()
        # Noise loses one degree of freedom per fitted number: 3 for the mean colour, 6 for ground and paint.
        of_mean = patches_BPC.mean(1).square().sum(1) * patches_BPC.shape[1]
        spread = power - of_mean - (values - 3) * noise_B
        missed = (power[:, None] - fitted - (values - 6) * noise_B[:, None]).clamp_min(0)
        return colours, 1 - missed / spread.clamp_min(1e-6)[:, None]


@cache
def _shapes(size: float, shapes: tuple[str, ...]) -> _Templates:
    return _Templates(shape_masks(size, shapes))


@cache
def _glyphs() -> _Templates:
    cells = {}
    for char, bitmap in GLYPHS.items():
        cells[char] = np.zeros((CELL, CELL), np.float32)
        cells[char][:7, 1:6] = bitmap
    return _Templates(cells)


@cache
def _boxes(size: float, shapes: tuple[str, ...]) -> dict[str, tuple[int, int, int, int]]:
    boxes = {}
    for name, mask in shape_masks(size, shapes).items():
        ys, xs = np.nonzero(mask > 0.5)
        left, right = int(xs.min()), int(xs.max()) + 1
        top, bottom = int(ys.min()), int(ys.max()) + 1
        boxes[name] = (left, top, right, bottom)
    return boxes


def _patches(images_BCHW: Tensor, size: int) -> Tensor:
    """Lattice patches [B, L, size^2, 3], row by row."""
    columns = torch.nn.functional.unfold(images_BCHW, size, stride=CELL)
    return columns.unflatten(1, (3, -1)).permute(0, 3, 2, 1)


def _noise(images_BCHW: Tensor) -> Tensor:
    """Variance of white noise [B], from the median difference of neighbouring pixels.

    Edges affect too few pixels to change the median. For Gaussian noise, the median of |difference| is 0.954 sigma.
    """
    differences = images_BCHW[..., 1:] - images_BCHW[..., :-1]
    return (differences.abs().flatten(1).median(1).values / 0.954).square()


def _best_fits(images_BCHW: Tensor, templates: _Templates, size: int) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
    """Patches per image L and, for each of B * L patches: evidence and index of the best template, ground, paint.

    Raises UsageError for images of a different size, since templates are only compared at lattice positions.
    """
    height, width = images_BCHW.shape[-2:]
    if (height, width) != (CANVAS, CANVAS):
        raise UsageError(f"images of the micro world have {CANVAS} x {CANVAS} pixels, not {width} x {height}")
    images_BCHW = images_BCHW.float().cpu()
    patches = _patches(images_BCHW, size)
    places = patches.shape[1]
    noise = _noise(images_BCHW).repeat_interleave(places)
    colours, explained = templates.fit(patches.flatten(0, 1), noise)
    best, which = explained.max(1)
    ground, paint = colours[torch.arange(len(which)), which].unbind(1)
    return places, best, which, ground, paint


@without_gradients
def find_shapes(images_BCHW: Tensor, size: float = 1.0, shapes: tuple[str, ...] = SHAPES) -> list[list[Mark]]:
    """The shapes in each of B images [B, 3, 32, 32], best first; of overlapping blocks only the best is kept.

    `size` is that of the shapes within their blocks; a detector sees the usual size only. `shapes` are the world's.
    Raises UsageError for images of a different size.
    """
    places, best, which, ground, paint = _best_fits(images_BCHW, _shapes(size, shapes), BLOCK)
    batch = len(images_BCHW)
    palette = torch.tensor(list(COLOURS.values())) / 255
    nearest = torch.cdist(paint, palette).argmin(1).view(batch, places).tolist()
    contrast = (paint - ground).norm(dim=1)
    score = torch.sigmoid((best - SHAPE_EVIDENCE) / SHAPE_SLOPE) * (contrast > MIN_CONTRAST)
    score = score.view(batch, places)
    order = score.argsort(dim=1, descending=True, stable=True).tolist()
    scores = score.tolist()
    kinds = which.view(batch, places).tolist()
    per_row = (CANVAS - BLOCK) // CELL + 1
    names, colour_names, boxes = _shapes(size, shapes).names, list(COLOURS), _boxes(size, shapes)
    pictures = []
    for i in range(batch):
        marks: list[Mark] = []
        for place in order[i]:
            left, top = place % per_row * CELL, place // per_row * CELL
            if scores[i][place] < 0.02:  # places are in order of score, so the rest is lower still
                break
            overlaps = (abs(mark.left - left) < BLOCK and abs(mark.top - top) < BLOCK for mark in marks)
            if any(overlaps):
                continue
            name = names[kinds[i][place]]
            x1, y1, x2, y2 = boxes[name]
            box = (left + x1, top + y1, left + x2, top + y2)
            colour = colour_names[nearest[i][place]]
            marks.append(Mark(name, colour, box, scores[i][place], left, top))
        pictures.append(marks)
    return pictures


def views(images_BCHW: Tensor, shapes: tuple[str, ...] = SHAPES) -> list[tuple[str, list[Mark]]]:
    """Whether each of B images [B, 3, 32, 32] shows shapes that are NEAR or DISTANT, and these shapes, best first.

    ("", []) for an image without a shape of either size whose confidence exceeds CONFIDENT. Raises as `find_shapes`.
    """
    found = []
    by_size = (find_shapes(images_BCHW, size, shapes) for size in (1.0, DISTANT_SIZE))
    for near, distant in zip(*by_size, strict=True):
        by_view = {NEAR: near, DISTANT: distant}
        sure = {view: [mark for mark in marks if mark.score > CONFIDENT] for view, marks in by_view.items()}
        view = max(sure, key=lambda view: sure[view][0].score if sure[view] else 0.0)
        found.append((view, sure[view]) if sure[view] else ("", []))
    return found


def grounds_of(images_BCHW: Tensor) -> list[str]:
    """The ground of each of B images [B, 3, H, W]: the palette entry that most pixels are nearest to."""
    palette = torch.tensor(list(GROUNDS.values())) / 255
    pixels = images_BCHW.float().cpu().flatten(2).mT
    distances = torch.cdist(pixels, palette.expand(len(pixels), -1, -1))
    counts = torch.nn.functional.one_hot(distances.argmin(2), len(GROUNDS)).sum(1)
    return [list(GROUNDS)[which] for which in counts.argmax(1).tolist()]


@without_gradients
def read_text(images_BCHW: Tensor) -> list[str]:
    """The characters in each of B images [B, 3, 32, 32], row by row from left to right, without separators.

    Raises UsageError for images of a different size.
    """
    places, best, which, ground, paint = _best_fits(images_BCHW, _glyphs(), CELL)
    batch = len(images_BCHW)
    contrast = (paint - ground).norm(dim=1)
    is_glyph = (best > GLYPH_EVIDENCE) & (contrast > MIN_CONTRAST)
    seen = is_glyph.view(batch, places).tolist()
    kinds = which.view(batch, places).tolist()
    names = _glyphs().names
    texts = []
    for row, found in zip(kinds, seen, strict=True):
        characters = [names[kind] for kind, is_there in zip(row, found, strict=True) if is_there]
        texts.append("".join(characters))
    return texts
