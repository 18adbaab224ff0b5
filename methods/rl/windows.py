"""Windows of noisy steps: only the steps of a window are sampled with noise and trained, the others are deterministic.

MixGRPO (arXiv 2507.21802) slides the window from the noisiest steps to the last ones and starts again; Flow-GRPO-Fast,
in the released code of Flow-GRPO, draws it at random. Windows are always full; MixGRPO's code also lets one shrink at
the end of the schedule. A window depends only on the run's seed, the update and the task.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bench.api.lab import Lab
from bench.api.method import Options
from bench.config.bounds import Count
from bench.errors import UsageError
from bench.sampler.rollout import Sampler
from bench.sampler.window import Windowed

SOURCES = {
    "random": "Flow-GRPO-Fast, released code of Flow-GRPO",
    "slide": "MixGRPO, arXiv 2507.21802",
}
"""Where each `place` of a window comes from."""


class WindowOptions(Options):
    """Which of the steps within the timestep fraction have noise and are trained."""

    unsaid: ClassVar[tuple[str, ...]] = ("first", "last")

    size: Annotated[int, Field(ge=0, le=1000)] = 0
    """Steps in a window; 0: all steps have noise, and those within the timestep fraction are trained."""
    place: Literal["random", "slide"] = "random"
    """random: every update draws the window's place (Flow-GRPO-Fast). slide: the window moves on by one step after
    every `every` updates (MixGRPO)."""
    every: Count = 25
    """Updates for which a sliding window stays."""
    first: Annotated[int, Field(ge=0, le=1000)] = 0
    """Index of the first step that may be in a window."""
    last: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Index of the last step that may be in a window; None: that of the last trained step."""

    def of(self, candidates: list[int]) -> list[int]:
        """The candidates that may be in a window."""
        return [k for k in candidates if self.first <= k and (self.last is None or k <= self.last)]


def check_window(engine: str, options: WindowOptions, candidates: list[int]) -> None:
    """Raise UsageError for a window that is longer than the steps it can take, and for settings without effect."""
    section, default, candidates = f"params.{engine}.window", WindowOptions(), options.of(candidates)
    if options.size > len(candidates):
        raise UsageError(f"{section}.size {options.size} is more than the {len(candidates)} steps that can be trained")
    if not options.size and options != default:
        raise UsageError(f"{section} has no effect at size 0: set {section}.size")
    if options.place == "random" and options.every != default.every:
        raise UsageError(f"{section}.every has no effect on a random window: set {section}.place=slide")


def windowed(lab: Lab, task: str, options: WindowOptions, candidates: list[int]) -> Sampler:
    """The sampler of this update: noise only in the window's part of the `candidates`, indices of noisy steps."""
    sampler, candidates = lab.sampler, options.of(candidates)
    if not options.size:
        return sampler
    places = len(candidates) - options.size + 1
    if options.place == "slide":
        first = lab.step // options.every % places
    else:
        first = int(lab.numpy_generator("window", task).integers(places))
    window = tuple(candidates[first : first + options.size])
    return Windowed(sampler.schedule, sampler.kernel, sampler.eta, sampler.embedded_guidance, noisy=window)
