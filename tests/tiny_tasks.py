"""Tasks whose rewards are computed from pixels, on prompts of the text task: any of them can score another's images."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import numpy as np
import torch

from bench import registry
from bench.api.task import Prompt, Scores, Task
from bench.errors import UsageError


class Tiny(Task):
    """Reward: a mean of pixels, also as a metric."""

    version = "1"

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self._signs = registry.find("task", "ocr")("micro")

    def prompts(self, split: str) -> list[Prompt]:
        return self._signs.prompts(split)[:15]

    def differentiable_reward(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        raise NotImplementedError

    def score(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> Scores:
        rewards = self.differentiable_reward(images_BCHW, prompts).double().numpy()
        return Scores(rewards, {self.headline: 100 * rewards}, [{"by": self.name} for _ in prompts])

    def audit(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        return {"audited": np.full(len(prompts), float(len(self.name)))}


class Red(Tiny):
    """How red an image is; its headline is its reward, as PickScore's."""

    name = "red"
    headline = "reward"

    def differentiable_reward(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        return images_BCHW[:, 0].mean((1, 2))

    def score(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> Scores:
        found = super().score(images_BCHW, prompts)
        return Scores(found.rewards, {"redness": found.metrics["reward"]}, found.details)


class Dark(Tiny):
    """How dark an image is."""

    name = "dark"
    headline = "darkness"
    lowest_reward = -1.0
    sources: ClassVar[dict[str, str]] = {"prompts": "folder, which this task does not read"}

    @property
    def elsewhere(self) -> bool:
        return True

    def differentiable_reward(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        return 1 - 2 * images_BCHW.mean((1, 2, 3))


class Picky(Dark):
    """A task that takes no prompt but its own."""

    name = "picky"

    def check(self, prompt: Prompt) -> None:
        if "mine" not in prompt.metadata:
            raise UsageError("its metadata have no field 'mine'")


TINY = (Red, Dark, Picky)


def register(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Register the tasks in this process, besides those of the installed packages."""
    real = registry.entry_points
    points = [EntryPoint(task.name, f"{__name__}:{task.__name__}", registry.GROUPS["task"]) for task in TINY]
    patch(registry, "entry_points", lambda group: [*real(group=group), *(p for p in points if p.group == group)])
    registry._points.cache_clear()
