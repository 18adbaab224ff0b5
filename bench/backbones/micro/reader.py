"""Reading micro pictures back: fit shape and glyph templates to lattice cells by least squares.

Every template is a coverage mask m in [0, 1]; a patch is modelled as (1 - m) ground + m paint with two free colours.
The share of the patch's variance that the best fit explains is the evidence. White noise, measured on the picture, is
taken out of both variances, so that a grainy picture is read as its clean twin for as long as a person could.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bench.backbones.micro.glyphs import GLYPHS
from bench.backbones.micro.world import BLOCK, CANVAS, CELL, COLOURS, shape_masks
from bench.errors import UsageError
from bench.lazy import torch, without_gradients

if TYPE_CHECKING:
    from torch import Tensor

MIN_CONTRAST = 0.2
"""Smallest distance (Euclidean, RGB in [0, 1]) between paint and ground."""
SHAPE_EVIDENCE, SHAPE_SLOPE = 0.55, 0.06
"""Explained variance at which a shape's confidence is one half, and how sharply it rises."""
GLYPH_EVIDENCE = 0.5


@dataclass(frozen=True)
class Mark:
    """A shape found: its class, the fitted paint, tight box (x1, y1, x2, y2), confidence and nearest palette colour."""

    shape: str
    colour: str
    box: tuple[float, float, float, float]
    score: float
    left: int
    top: int


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
        spread = power - patches_BPC.mean(1).square().sum(1) * patches_BPC.shape[1] - (values - 3) * noise_B
        missed = (power[:, None] - fitted - (values - 6) * noise_B[:, None]).clamp_min(0)
        return colours, 1 - missed / spread.clamp_min(1e-6)[:, None]


@cache
def _shapes() -> _Templates:
    return _Templates(shape_masks())


@cache
def _glyphs() -> _Templates:
    cells = {}
    for char, bitmap in GLYPHS.items():
        cells[char] = np.zeros((CELL, CELL), np.float32)
        cells[char][:7, 1:6] = bitmap
    return _Templates(cells)


@cache
def _boxes() -> dict[str, tuple[int, int, int, int]]:
    boxes = {}
    for name, mask in shape_masks().items():
        ys, xs = np.nonzero(mask > 0.5)
        boxes[name] = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return boxes


def _patches(images_BCHW: Tensor, size: int) -> Tensor:
    """Lattice patches [B, L, size^2, 3], row by row."""
    columns = torch.nn.functional.unfold(images_BCHW, size, stride=CELL)
    return columns.unflatten(1, (3, -1)).permute(0, 3, 2, 1)


def _noise(images_BCHW: Tensor) -> Tensor:
    """Variance of white noise [B], from the median difference of neighbours (edges are too few to move a median)."""
    return ((images_BCHW[..., 1:] - images_BCHW[..., :-1]).abs().flatten(1).median(1).values / 0.954).square()


def _best_fits(images_BCHW: Tensor, templates: _Templates, size: int) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
    """Places L a picture and, for each of B * L patches: evidence and index of the best template, ground, paint.

    Raises UsageError for pictures of another size: their objects would be looked for in the wrong places.
    """
    height, width = images_BCHW.shape[-2:]
    if (height, width) != (CANVAS, CANVAS):
        raise UsageError(f"the micro world's pictures are of {CANVAS} x {CANVAS} pixels, not {width} x {height}")
    images_BCHW = images_BCHW.float().cpu()
    patches = _patches(images_BCHW, size)
    places = patches.shape[1]
    colours, explained = templates.fit(patches.flatten(0, 1), _noise(images_BCHW).repeat_interleave(places))
    best, which = explained.max(1)
    ground, paint = colours[torch.arange(len(which)), which].unbind(1)
    return places, best, which, ground, paint


@without_gradients
def find_shapes(images_BCHW: Tensor) -> list[list[Mark]]:
    """Shapes in each of B pictures [B, 3, 32, 32], best first; overlapping blocks keep the better one."""
    places, best, which, ground, paint = _best_fits(images_BCHW, _shapes(), BLOCK)
    batch = len(images_BCHW)
    palette = torch.tensor(list(COLOURS.values())) / 255
    nearest = torch.cdist(paint, palette).argmin(1).view(batch, places).tolist()
    contrast = (paint - ground).norm(dim=1)
    score = torch.sigmoid((best - SHAPE_EVIDENCE) / SHAPE_SLOPE) * (contrast > MIN_CONTRAST)
    order = score.view(batch, places).argsort(dim=1, descending=True, stable=True).tolist()
    scores, kinds = score.view(batch, places).tolist(), which.view(batch, places).tolist()
    per_row = (CANVAS - BLOCK) // CELL + 1
    names, colour_names = _shapes().names, list(COLOURS)
    pictures = []
    for i in range(batch):
        marks: list[Mark] = []
        for place in order[i]:
            left, top = place % per_row * CELL, place // per_row * CELL
            if scores[i][place] < 0.02:
                break
            if any(abs(m.left - left) < BLOCK and abs(m.top - top) < BLOCK for m in marks):
                continue
            name = names[kinds[i][place]]
            x1, y1, x2, y2 = _boxes()[name]
            box = (left + x1, top + y1, left + x2, top + y2)
            marks.append(Mark(name, colour_names[nearest[i][place]], box, scores[i][place], left, top))
        pictures.append(marks)
    return pictures


@without_gradients
def read_text(images_BCHW: Tensor) -> list[str]:
    """Characters in each of B pictures, row by row, left to right, without separators."""
    places, best, which, ground, paint = _best_fits(images_BCHW, _glyphs(), CELL)
    batch = len(images_BCHW)
    seen = ((best > GLYPH_EVIDENCE) & ((paint - ground).norm(dim=1) > MIN_CONTRAST)).view(batch, places).tolist()
    kinds = which.view(batch, places).tolist()
    names = _glyphs().names
    return ["".join(names[c] for c, s in zip(row, ok, strict=True) if s) for row, ok in zip(kinds, seen, strict=True)]
