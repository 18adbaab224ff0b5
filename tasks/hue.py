"""Two tastes in colour at a known angle, to diagnose how methods trade off rewards that agree or oppose each other.

The reward is computed from pixels alone, in any world. Mean chroma is the mean colour of an image without its
lightness: a vector in the plane orthogonal to grey, with red at 0 degrees, green at 120 and blue at 240. The reward is
a logistic function of its component along the task's direction. If the directions are the same, so are the rewards; if
they are 180 degrees apart, the rewards of every image add up to 1.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from bench.api.task import Prompt, Scores, Task
from bench.backbones.micro.worlds import DRAWN
from bench.errors import UsageError
from bench.lazy import torch
from tasks.ocr.task import Ocr
from tasks.prompt_files import SOURCE, as_prompts, read_prompts

if TYPE_CHECKING:
    from torch import Tensor

DIRECTION = 45.0
"""Degrees of hue_a's direction, between orange and yellow. On micro the mean chroma of the base's images varies most
along it, from cream to blue grounds, so that the rewards at a right angle are not correlated."""
SLOPE = 10.0
"""Factor on the component of mean chroma, which is between -.16 and .13 for the grounds of micro."""
PLANE = ((2 / 6**0.5, -1 / 6**0.5, -1 / 6**0.5), (0.0, 1 / 2**0.5, -1 / 2**0.5))
"""Two orthonormal RGB vectors orthogonal to grey; the first points to red."""


class Hue(Task):
    """The taste of both tasks; a subclass gives its direction."""

    version = "1"
    headline = "reward"
    sources: ClassVar[dict[str, str]] = SOURCE

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        if world in DRAWN and "prompts" in self.given:
            raise UsageError(f"scorers.{self.name}.prompts does nothing in the world {world!r}: leave it out")

    @property
    def direction(self) -> float:
        """Direction of the taste in the plane of chroma, in degrees."""
        return DIRECTION

    @property
    def scorer_name(self) -> str:
        """Version and direction."""
        return f"{self.name}-{self.version}+{self.direction:g}"

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        return as_prompts(read_prompts(self.name, self.given))

    def prompts(self, split: str) -> list[Prompt]:
        """In drawn worlds the captions of the task ocr, which name no colour; elsewhere those of the user's files."""
        if self.world in DRAWN:
            return [Prompt(prompt.text) for prompt in Ocr(self.world).prompts(split)]
        return self._splits[split]

    def chroma(self, images_BCHW: Tensor) -> Tensor:
        """Component of the mean chroma along the direction, float64 [B], with gradients to images in [0, 1]."""
        angle = math.radians(self.direction)
        plane = torch.tensor(PLANE, dtype=torch.float64, device=images_BCHW.device)
        along = math.cos(angle) * plane[0] + math.sin(angle) * plane[1]
        return images_BCHW.double().mean((2, 3)) @ along

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """Logistic function of `chroma`, float64 [B]."""
        return torch.sigmoid(SLOPE * self.chroma(images_BCHW))

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The same reward, and `chroma` as a metric."""
        with torch.no_grad():
            rewards = self.differentiable_reward(images_BCHW, prompts).cpu().numpy()
            return Scores(rewards, {"chroma": self.chroma(images_BCHW).cpu().numpy()})


class HueA(Hue):
    """A taste in colour: the mean chroma towards warm hues (diagnostic)."""

    name = "hue_a"


class HueB(Hue):
    """A taste in colour at an angle to hue_a's: 0 the same, 180 opposed (diagnostic)."""

    name = "hue_b"
    sources: ClassVar[dict[str, str]] = SOURCE | {"angle": "degrees from hue_a's direction, 0 to 360; default 180"}

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        given = self.given.get("angle", "180")
        try:
            self.angle = float(given)
        except ValueError:
            self.angle = math.nan
        if not 0 <= self.angle <= 360:
            raise UsageError(f"scorers.hue_b.angle takes degrees from 0 to 360, got {given!r}")

    @property
    def direction(self) -> float:
        """hue_a's direction plus the angle, in degrees."""
        return DIRECTION + self.angle
