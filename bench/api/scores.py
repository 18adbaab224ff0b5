"""Robust scoring in parts that fit in memory: an image on which a scorer fails gets NaN (never 0), not the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.metric_names import REWARD
from bench.api.task import Prompt, Scores, Task
from bench.errors import BenchError, one_line
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

PART = 2**16
"""Number of latent positions that are decoded and scored together: sixteen images of 512 x 512 pixels, 50 MB."""
PATIENCE = 8
"""Number of images that may fail before the first success; then scoring stops with an error."""
FAILURE = "failure"
"""Key of an image's details for the cause of a failure."""
REWARD_SUM = "reward_sum"
"""Name of the weighted sum of a task's several rewards among the metrics of stored scores."""
NOT_FINITE = "the model's output is not finite"
"""Cause of failure of images from a diverged model."""


class Unscorable(BenchError):
    """A scorer failed on every image of a batch."""


def pictures_at_once(places: int) -> int:
    """Number of images that are decoded and scored together, for latents of `places` positions (H x W)."""
    return max(1, PART // places)


def parts_of(latents_BCHW: Tensor) -> Iterator[slice]:
    """Slices of the batch to decode and score in turn, so that an update's images are never in memory together."""
    size = pictures_at_once(latents_BCHW[0, 0].numel()) if len(latents_BCHW) else 1
    return (slice(start, start + size) for start in range(0, len(latents_BCHW), size))


def finite(latents_BCHW: Tensor, images_BCHW: Tensor) -> np.ndarray:
    """Which images are finite, bool [B].

    Latents are checked too, because a decoder may clamp values that are not finite to an ordinary colour.
    """
    latents_B = latents_BCHW.isfinite().flatten(1).all(1)
    images_B = images_BCHW.isfinite().flatten(1).all(1)
    return (latents_B & images_B).cpu().numpy()


def score_finite(
    fine_B: np.ndarray, images_BCHW: Tensor, prompts: list[Prompt], score: Callable[[Tensor, list[Prompt]], Scores]
) -> Scores:
    """Scores of the images that `fine_B` marks as finite, NaN for the others. Raises Unscorable if none is."""
    if fine_B.all():
        return score(images_BCHW, prompts)
    if not fine_B.any():
        raise Unscorable(NOT_FINITE)
    kept, lost = np.flatnonzero(fine_B), np.flatnonzero(~fine_B)
    good = score(images_BCHW[kept], [prompts[i] for i in kept])
    whole = stacked([good, unscored(good, len(lost), NOT_FINITE)])
    back = np.argsort(np.concatenate([kept, lost]))  # restores the order of the batch
    return replace(_changed(whole, lambda values: values[back]), details=[whole.details[i] for i in back])


def _changed(scores: Scores, change: Callable[[np.ndarray], np.ndarray]) -> Scores:
    """The scores with a change made to each array of numbers."""
    metrics = {name: change(values) for name, values in scores.metrics.items()}
    separate = {name: change(values) for name, values in scores.separate.items()}
    return Scores(change(scores.rewards), metrics, scores.details, separate)


class Collected:
    """Collects the scores of successive parts. A part that cannot be scored becomes NaN unless all parts fail."""

    def __init__(self) -> None:
        self.parts: list[Scores | tuple[int, BenchError]] = []
        """The scores of each part, or (number of images, cause) of a part without scores."""
        self.failed = 0
        """Number of images on which the scorer failed."""

    def add(self, count: int, score: Callable[[], Scores]) -> None:
        """Score a part of `count` images. Raises Unscorable if the first PATIENCE images or more all failed."""
        try:
            self.parts.append(score())
        except Unscorable as error:
            self.lose(count, error)
            self.failed += count
            if self._good() is None and self.failed >= PATIENCE:
                raise

    def lose(self, count: int, cause: BenchError) -> None:
        """Record `count` images without scores."""
        self.parts.append((count, cause))

    def _good(self) -> Scores | None:
        """The first part that has scores."""
        return next((part for part in self.parts if isinstance(part, Scores)), None)

    def whole(self) -> Scores | None:
        """All scores in order; None if there was nothing to score. Raises the first cause if no image was scored."""
        good = self._good()
        if good is None:
            for part in self.parts:
                if not isinstance(part, Scores):
                    raise part[1]
            return None
        parts = []
        for part in self.parts:
            if isinstance(part, Scores):
                parts.append(part)
            else:
                count, cause = part
                parts.append(unscored(good, count, one_line(cause)))
        return stacked(parts)


def score_each(task: Task, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
    """`task.score`, or if it fails, the scores of every image separately, with NaN for the images that fail.

    Raises Unscorable if no image can be scored. Errors that are not caused by an image (missing weights, insufficient
    memory) are raised unchanged.
    """
    try:
        scores = task.score(images_BCHW, prompts)
        return _some(blanked(scores, task.headline), task.name)
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a scorer may raise anything
        if len(prompts) == 1:
            raise Unscorable(f"the scorer of task {task.name!r} failed: {one_line(error)}") from error
    parts: list[Scores | str] = []
    for i in range(len(prompts)):
        try:
            scores = task.score(images_BCHW[i : i + 1], prompts[i : i + 1])
            parts.append(blanked(scores, task.headline))
        except (BenchError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            parts.append(one_line(error))
    good = next((part for part in parts if isinstance(part, Scores)), None)
    if good is None:
        raise Unscorable(f"the scorer of task {task.name!r} failed on every image: {parts[0]}")
    whole = stacked([part if isinstance(part, Scores) else unscored(good, 1, part) for part in parts])
    return _some(whole, task.name)


def _some(scores: Scores, task: str) -> Scores:
    """Return the scores unchanged. Raises Unscorable if every reward is NaN."""
    if len(scores.rewards) and np.isnan(scores.rewards).all():
        raise Unscorable(cause_of(scores.details) or f"the scorer of task {task!r} returned no score for any image")
    return scores


def cause_of(details: list[dict]) -> str:
    """The first recorded cause of a failure, shortened; empty if there is none."""
    causes = (str(detail[FAILURE])[:500] for detail in details if FAILURE in detail)
    return next(causes, "")


def blanked(scores: Scores, headline: str) -> Scores:
    """The scores with NaN in all metrics and the reward of every image that lacks its reward or its headline metric.

    A partly scored image would otherwise count in one mean and not in another.
    """
    lost = np.isnan(scores.rewards) | np.isnan(scores.metrics.get(headline, scores.rewards))
    return _changed(scores, lambda values: np.where(lost, np.nan, values))


def rows_of(task: Task, scores: Scores) -> dict[str, np.ndarray]:
    """metric -> values [B], including the reward.

    Of a task with several rewards, "reward" is its own, which can be compared with that of other runs; the others are
    "SCORER.reward", and the weighted sum is "reward_sum".

    Raises BenchError if the scorer does not return the task's headline metric, or names a metric like the reward.
    """
    if REWARD in scores.metrics:
        raise BenchError(f"the scorer of task {task.name!r} names a metric {REWARD!r}: rename it, this is the reward")
    rows = {REWARD: scores.separate.get(task.name, scores.rewards)} | scores.metrics
    if scores.separate:
        others = {f"{name}.{REWARD}": values for name, values in scores.separate.items() if name != task.name}
        rows |= others | {REWARD_SUM: scores.rewards}
    if task.headline not in rows:
        given = ", ".join(rows)
        raise BenchError(f"the scorer of task {task.name!r} gives {given}, not the headline metric {task.headline!r}")
    return rows


def unscored(like: Scores, count: int, cause: str) -> Scores:
    """Scores of `count` images that are all NaN, with the metrics of `like` and the cause in their details."""
    lost = _changed(like, lambda _: np.full(count, np.nan))
    return replace(lost, details=[{FAILURE: cause} for _ in range(count)])


def stacked(parts: list[Scores]) -> Scores:
    """The concatenated scores of several batches. Raises BenchError if their metrics differ."""
    names = list(parts[0].metrics)
    for part in parts:
        if set(part.metrics) != set(names):
            others = list(part.metrics)
            raise BenchError(f"a scorer returns metrics {names} for some images and {others} for others")
    metrics = {name: np.concatenate([part.metrics[name] for part in parts]) for name in names}
    details: list[dict] = []
    # Details are either complete or absent, so parts without any get empty ones if another part has some.
    if any(part.details for part in parts):
        for part in parts:
            details += part.details or [{} for _ in part.rewards]
    separate = {name: np.concatenate([part.separate[name] for part in parts]) for name in parts[0].separate}
    return Scores(np.concatenate([part.rewards for part in parts]), metrics, details, separate)
