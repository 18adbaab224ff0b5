"""Six tastes in the drawn worlds, to measure when rival methods trade off rewards that conflict.

Each taste is a direction in a plane of two attributes of an image that no caption decides. Tastes come in pairs: 1 and
2 are in one plane, at an angle that the user sets, 3 and 4 in a second plane, 5 and 6 in a third. A plane's attributes
are whitened, so that at a right angle two tastes are uncorrelated over the world's drawn scenes, and at 180 degrees
their rewards add up to 1 on every image. Which prompts tasks have in common is set apart from that, from none to all.
"""

from __future__ import annotations

import math
from functools import cache, cached_property
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import SPLITS, Prompt, Scores, Task
from bench.backbones.micro.captions import Brief, caption, draw_brief, draw_scene
from bench.backbones.micro.world import draw
from bench.backbones.micro.worlds import DRAWN, DrawnWorld
from bench.errors import UsageError, unknown
from bench.lazy import torch
from tasks.hue import PLANE
from tasks.pickscore.micro import pairs

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {"train": 280, "validation": 24, "test": 48}
"""Prompts per split on micro; held-out splits of other worlds are as many times larger as their others. There are 680
meanings of a task's own shapes."""
SHAPES_PER_TASK = 2
SEED = 13
"""Seed on micro of the prompts and of the scenes that the attributes are whitened over; see DrawnWorld.seed_of."""
SCENES = 2000
OVERLAPS = {"none": 0.0, "half": 0.5, "all": 1.0}
"""Setting -> the fraction of a task's prompts that all tasks have in common."""
LUMINANCE = (0.2126, 0.7152, 0.0722)
PLANES = ("colour", "place", "light")
"""What the three planes are made of: see `attributes`."""


def attributes(images_BCHW: Tensor, plane: str) -> Tensor:
    """Two attributes of images [B, 3, H, W], float64 [B, 2].

    - colour: mean chroma, the colour of the whole image without its lightness.
    - place: how far the figure (all that differs from the image's most frequent colour) is to the right and below.
    - light: mean luminance, and its standard deviation over the image.
    """
    pixels = images_BCHW.double()
    if plane == "colour":
        return pixels.mean((2, 3)) @ torch.tensor(PLANE, dtype=torch.float64, device=pixels.device).mT
    if plane == "light":
        weights = torch.tensor(LUMINANCE, dtype=torch.float64, device=pixels.device)
        luminance = torch.einsum("bchw,c->bhw", pixels, weights).flatten(1)
        return torch.stack([luminance.mean(1), luminance.std(1, correction=0)], 1)
    ground = pixels.flatten(2).median(2).values
    figure = (pixels - ground[..., None, None]).square().sum(1).sqrt()
    mass = figure.sum((1, 2)).clamp_min(1e-6)
    height, width = figure.shape[1:]
    columns, rows = (torch.linspace(-1, 1, size, dtype=torch.float64, device=pixels.device) for size in (width, height))
    right = torch.einsum("bhw,w->b", figure, columns) / mass
    below = torch.einsum("bhw,h->b", figure, rows) / mass
    return torch.stack([right, below], 1)


@cache
def whitening(world: str, plane: str) -> tuple[Tensor, Tensor]:
    """(mean [2], matrix [2, 2]) that give a plane's attributes unit variance and no correlation over drawn scenes.

    The matrix is the symmetric inverse root of the covariance, which turns the attributes' axes as little as possible.
    """
    drawn = DRAWN[world]
    rng = np.random.default_rng([drawn.seed_of(SEED), 1])
    scenes = [draw_scene(draw_brief(rng, "illustration", drawn.shapes), rng) for _ in range(SCENES)]
    images = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)
    found = attributes(images, plane)
    values, vectors = torch.linalg.eigh(found.mT.cov())
    return found.mean(0), vectors @ torch.diag(values.rsqrt()) @ vectors.mT


@cache
def own_prompts(world: str, number: int) -> dict[str, list[str]]:
    """The captions of a task's own shapes by split, each of two or three different objects, no meaning twice."""
    drawn = DRAWN[world]
    shapes = drawn.shapes[SHAPES_PER_TASK * (number - 1) : SHAPES_PER_TASK * number]
    sizes = drawn.sizes(SIZES)
    rng = np.random.default_rng([drawn.seed_of(SEED), 2, number])
    unique: dict[tuple, Brief] = {}
    while len(unique) < sum(sizes.values()):
        brief = draw_brief(rng, "illustration", shapes)
        objects = sorted(pairs(brief))
        if len(objects) > 1 and len(set(objects)) == len(objects):
            unique.setdefault(tuple(objects), brief)
    # Nearly all meanings are used, and those of two objects are found first: without this, splits would differ in size.
    mixed = rng.permutation(np.array([caption(brief) for brief in unique.values()], object))
    texts = iter(mixed.tolist())
    return {split: list(islice(texts, size)) for split, size in sizes.items()}


class Taste(Task):
    """What the six tastes share; a subclass has a number."""

    version = "2"
    headline = "taste"
    number: ClassVar[int] = 0
    sources: ClassVar[dict[str, str]] = {
        "overlap": "prompts that all tastes have in common: none, half or all; default all. Set it for each taste",
        "among": "number of tastes whose shapes the common prompts have; default 2. Set it for each taste",
    }

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.drawn: DrawnWorld = self.world_entry(DRAWN)
        most = len(self.drawn.shapes) // SHAPES_PER_TASK
        self.among = int(self._between("among", "2", 1, most, f"tastes in the world {world!r}"))
        if self.number > most:
            raise UsageError(f"the world {world!r} has shapes for {most} tastes: leave {self.name} out")
        if self.number > self.among:
            raise UsageError(
                f"{self.name} is not among {self.among}: set scorers.{self.name}.among={self.number} or more"
            )
        overlap = self.given.get("overlap", "all")
        if overlap not in OVERLAPS:
            raise unknown(f"scorers.{self.name}.overlap", overlap, OVERLAPS)
        self.common = OVERLAPS[overlap]

    def _between(self, key: str, default: str, low: float, high: float, what: str) -> float:
        given = self.given.get(key, default)
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (key == "among" and value != int(value)):
            raise UsageError(f"scorers.{self.name}.{key} takes {low:g} to {high:g} {what}, got {given!r}")
        return value

    def check_beside(self, other: Task) -> None:
        """Raise UsageError if another taste has other common prompts."""
        if not isinstance(other, Taste):
            return
        for key, own, its in (("overlap", self.common, other.common), ("among", self.among, other.among)):
            # Without common prompts it does not matter whose shapes they would have.
            if own != its and (key == "overlap" or self.common):
                names = f"scorers.{self.name}.{key} and scorers.{other.name}.{key}"
                raise UsageError(f"{names} differ, but tastes of one run have the same common prompts: set both alike")

    @property
    def plane(self) -> str:
        """The plane of its pair."""
        return PLANES[(self.number - 1) // 2]

    @property
    def direction(self) -> float:
        """The taste's direction in the plane, in degrees: 0 for the first of a pair."""
        return 0.0

    @property
    def scorer_name(self) -> str:
        """Version, world and direction."""
        return f"{self.name}-{self.version}+{self.world}+{self.direction:g}"

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        found = {}
        for split in SPLITS:
            own = own_prompts(self.world, self.number)[split]
            pools = [own_prompts(self.world, number)[split] for number in range(1, self.among + 1)]
            # Every taste has the same common prompts: those of all in turn, from each list's start.
            count = round(self.common * len(own))
            common = [pools[i % self.among][i // self.among] for i in range(count)]
            # Its own further prompts are from its list's end, where the common ones have not been.
            texts = common + (own[count - len(own) :] if count < len(own) else [])
            found[split] = [Prompt(text) for text in texts]
        return found

    def prompts(self, split: str) -> list[Prompt]:
        """Illustrations of the task's own two shapes, of the shapes of all tasks, or of both, by the overlap."""
        return self._splits[split]

    def along(self, images_BCHW: Tensor) -> Tensor:
        """The whitened component along the taste's direction, float64 [B]: of unit variance over drawn scenes."""
        mean, matrix = (part.to(images_BCHW.device) for part in whitening(self.world, self.plane))
        turned = math.radians(self.direction)
        direction = torch.tensor([math.cos(turned), math.sin(turned)], dtype=torch.float64, device=images_BCHW.device)
        return (attributes(images_BCHW, self.plane) - mean) @ matrix @ direction

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The logistic function of `along`, also as the metric "taste": as a reward it may be one of several."""
        with torch.no_grad():
            liked = torch.sigmoid(self.along(images_BCHW)).cpu().numpy()
            return Scores(liked, {"taste": liked})


class Turned(Taste):
    """The second taste of a pair."""

    sources: ClassVar[dict[str, str]] = Taste.sources | {
        "angle": "degrees to the first taste of the pair, 0 to 180; default 90"
    }

    @property
    def direction(self) -> float:
        """The angle to the first taste, in degrees."""
        return self.angle

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.angle = self._between("angle", "90", 0, 180, "degrees")


class Taste1(Taste):
    """A taste in the image's colour."""

    name, number = "taste_1", 1


class Taste2(Turned):
    """A taste in the image's colour, at an angle to taste_1."""

    name, number = "taste_2", 2


class Taste3(Taste):
    """A taste in where the figure is."""

    name, number = "taste_3", 3


class Taste4(Turned):
    """A taste in where the figure is, at an angle to taste_3."""

    name, number = "taste_4", 4


class Taste5(Taste):
    """A taste in the image's light."""

    name, number = "taste_5", 5


class Taste6(Turned):
    """A taste in the image's light, at an angle to taste_5."""

    name, number = "taste_6", 6
