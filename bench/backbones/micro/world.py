"""The micro world's images: shapes and signs on plain grounds, drawn on a 32x32 canvas.

Objects are 13-pixel shapes in 16-pixel blocks whose corners are on an 8-pixel lattice (one latent pixel). In a distant
view they are half that size: a person still recognises them, but the detector misses them, as detectors miss small
objects in photographs. A caption fixes only part of a scene. The rest (distance, ground colour, placement, specks of
dirt) varies freely, so a reward can prefer some images over others in ways that no guidance scale achieves.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from bench.backbones.micro.glyphs import GLYPHS

CANVAS = 32
CELL = 8
BLOCK = 16
LATTICE = (0, 8, 16)
DISTANT_SIZE = 0.5
"""Size of objects in a distant view, relative to the usual size."""
SIGN_ROW = 8
"""Top pixel row of a sign's characters."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (35, 160, 65),
    "blue": (40, 90, 225),
    "purple": (135, 55, 190),
    "pink": (250, 150, 195),
    "brown": (125, 75, 35),
}
GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "cream": (248, 236, 205),
    "sky": (200, 225, 245),
    "black": (18, 18, 20),
    "navy": (22, 30, 75),
    "slate": (85, 90, 100),
}
LIGHT_GROUNDS = frozenset({"white", "cream", "sky"})
INK_DARK, INK_LIGHT = (20, 20, 30), (245, 245, 245)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Fold the plane into one of five sectors; its edge runs from an outer tip (at +-pi/5) to the inner corner (at 0).
    angle = np.arctan2(x, -y) % (2 * np.pi / 5) - np.pi / 5
    outer, inner = 7.0, 3.0
    tip = np.array([outer * np.sin(np.pi / 5), outer * np.cos(np.pi / 5)])
    corner = np.array([0.0, inner])
    normal = np.array([corner[1] - tip[1], tip[0] - corner[0]])
    radius = np.hypot(x, y)
    px, py = np.abs(radius * np.sin(angle)), radius * np.cos(angle)
    return (px - corner[0]) * normal[0] + (py - corner[1]) * normal[1] <= 0


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobes = (abs(x) - 3.1) ** 2 + (y + 2.6) ** 2 <= 3.5**2
    return lobes | ((y >= -1.2) & (abs(x) <= (6.4 - y) * 0.765))


_INSIDE = {
    "circle": lambda x, y: x**2 + y**2 <= 6.3**2,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 5.8,
    "triangle": lambda x, y: (y <= 6) & (y >= -6.5) & (abs(x) <= (y + 6.5) * 6.5 / 12.5),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 1.9) & (np.maximum(abs(x), abs(y)) <= 6.5),
    "ring": lambda x, y: (x**2 + y**2 <= 6.5**2) & (x**2 + y**2 >= 3.6**2),
    "star": _star,
    "diamond": lambda x, y: abs(x) / 4.6 + abs(y) / 6.8 <= 1,
    "moon": lambda x, y: (x**2 + y**2 <= 6.5**2) & ((x - 3.4) ** 2 + (y + 1.5) ** 2 > 5.2**2),
    "heart": _heart,
    "arrow": lambda x, y: np.where(x < -0.2, (x >= -6.6) & (abs(y) <= 1.7), abs(y) <= (6.6 - x) * 0.95),
    "bridge": lambda x, y: (abs(x) <= 6.5) & (abs(y) <= 5.5) & ~((abs(x) <= 3.2) & (y >= -1.2)),
    "bowtie": lambda x, y: (abs(y) <= abs(x) * 0.95 + 0.5) & (abs(x) <= 6.5),
}
STUDY_SHAPES: tuple[str, ...] = tuple(_INSIDE)
"""The shapes of the study's worlds. No two of them are more alike than circle and square are."""
SHAPES = STUDY_SHAPES[:6]
"""The shapes of the world `micro`."""


@cache
def shape_masks(size: float = 1.0, shapes: tuple[str, ...] = SHAPES) -> dict[str, np.ndarray]:
    """Anti-aliased coverage of `shapes`, float32 [16, 16] in [0, 1]; `size` scales each within its block."""
    # 8 x 8 samples per pixel, averaged below.
    fine = ((np.arange(BLOCK * 8) + 0.5) / 8 - BLOCK / 2) / size
    x, y = np.meshgrid(fine, fine)
    masks = {}
    for name in shapes:
        samples = _INSIDE[name](x, y).reshape(BLOCK, 8, BLOCK, 8)
        masks[name] = samples.mean((1, 3)).astype(np.float32)
    return masks


@dataclass(frozen=True)
class Thing:
    """One object: names of its shape and colour, and the left and top edge of its block in pixels."""

    shape: str
    colour: str
    left: int
    top: int


@dataclass(frozen=True)
class Scene:
    """Everything that determines an image. `specks` are the lattice cells (column, row) with a speck of dirt."""

    ground: str
    things: tuple[Thing, ...] = ()
    sign: str = ""
    specks: tuple[tuple[int, int], ...] = field(default=())
    distant: bool = False


def sign_cells(sign: str) -> list[tuple[int, int]]:
    """Lattice cells (column, row) of a sign's characters, from left to right."""
    return [(column, SIGN_ROW // CELL) for column in range(len(sign))]


def taken_cells(scene: Scene) -> set[tuple[int, int]]:
    """Lattice cells (column, row) covered by an object or a character."""
    cells = set(sign_cells(scene.sign))
    for thing in scene.things:
        column, row = thing.left // CELL, thing.top // CELL
        cells |= {(column + i, row + j) for i in (0, 1) for j in (0, 1)}
    return cells


def draw(scene: Scene) -> np.ndarray:
    """The image of a scene, float32 [32, 32, 3] in [0, 1]."""
    ground = np.array(GROUNDS[scene.ground], np.float32) / 255
    image = np.broadcast_to(ground, (CANVAS, CANVAS, 3)).copy()
    light = scene.ground in LIGHT_GROUNDS
    for column, row in scene.specks:
        x, y = column * CELL + 3, row * CELL + 3
        image[y : y + 3, x : x + 3] += -0.3 if light else 0.3
    masks = shape_masks(DISTANT_SIZE if scene.distant else 1.0, STUDY_SHAPES)
    for thing in scene.things:
        alpha = masks[thing.shape][..., None]
        block = image[thing.top : thing.top + BLOCK, thing.left : thing.left + BLOCK]
        block += alpha * (np.array(COLOURS[thing.colour], np.float32) / 255 - block)
    ink = np.array(INK_DARK if light else INK_LIGHT, np.float32) / 255
    for char, (column, row) in zip(scene.sign, sign_cells(scene.sign), strict=True):
        x, y = column * CELL + 1, row * CELL
        cell = image[y : y + 7, x : x + 5]
        cell += GLYPHS[char][..., None] * (ink - cell)
    return image.clip(0, 1)


def place(count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Random (left, top) corners of `count` blocks that do not overlap, uniform over all such placements."""
    options = _placements(count)
    corners = options[rng.integers(len(options))]
    return [corners[i] for i in rng.permutation(count)]


@cache
def _placements(count: int) -> list[tuple[tuple[int, int], ...]]:
    from itertools import combinations

    def apart(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return abs(a[0] - b[0]) >= BLOCK or abs(a[1] - b[1]) >= BLOCK

    corners = [(x, y) for y in LATTICE for x in LATTICE]
    choices = combinations(corners, count)
    return [choice for choice in choices if all(apart(a, b) for a, b in combinations(choice, 2))]
