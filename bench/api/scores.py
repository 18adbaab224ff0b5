"""Scoring that survives a picture that a scorer cannot take: NaN for it alone, never 0; and in parts, for memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.errors import BenchError, one_line
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

PART = 2**16
"""Places of latents that are decoded and scored together: sixteen pictures of 512 pixels a side, 50 MB."""
PATIENCE = 8
"""Pictures that may fail before any is scored."""
FAILURE = "failure"
"""What a picture's details say of a scorer that cannot take it."""
REWARD = "reward"
"""What rows call the reward, beside the metrics; no metric may be called so."""
NOT_FINITE = "the model gives values that are not finite"


class Unscorable(BenchError):
    """A scorer fails on every picture that it was given."""


def pictures_at_once(places: int) -> int:
    """How many pictures are decoded and scored together, each of so many places of a latent."""
    return max(1, PART // places)


def parts_of(latents_BCHW: Tensor) -> Iterator[slice]:
    """Rows to decode and score one part after the other, so that an update's pictures never lie in memory together."""
    size = pictures_at_once(latents_BCHW[0, 0].numel()) if len(latents_BCHW) else 1
    return (slice(start, start + size) for start in range(0, len(latents_BCHW), size))


def finite(latents_BCHW: Tensor, images_BCHW: Tensor) -> np.ndarray:
    """Which pictures are pictures, bool [B]: a decoder may clamp what is not finite to an ordinary colour."""
    both = (latents_BCHW.isfinite().flatten(1).all(1), images_BCHW.isfinite().flatten(1).all(1))
    return (both[0] & both[1]).cpu().numpy()


def score_finite(
    fine_B: np.ndarray, images_BCHW: Tensor, prompts: list[Prompt], score: Callable[[Tensor, list[Prompt]], Scores]
) -> Scores:
    """Scores of the pictures that are `finite`, NaN for the others. Raises Unscorable if none is."""
    if fine_B.all():
        return score(images_BCHW, prompts)
    if not fine_B.any():
        raise Unscorable(NOT_FINITE)
    kept, lost = np.flatnonzero(fine_B), np.flatnonzero(~fine_B)
    good = score(images_BCHW[kept], [prompts[i] for i in kept])
    whole, back = stacked([good, unscored(good, len(lost), NOT_FINITE)]), np.argsort(np.concatenate([kept, lost]))
    metrics = {name: values[back] for name, values in whole.metrics.items()}
    return Scores(whole.rewards[back], metrics, [whole.details[i] for i in back])


class Collected:
    """Scores of one part after the other. A part that cannot be scored is NaN, unless that goes for all of them."""

    def __init__(self) -> None:
        self.parts: list[Scores | tuple[int, BenchError]] = []
        """Scores, or how many pictures have none and why."""
        self.failed = 0
        """Pictures that the scorer could not take."""

    def add(self, count: int, score: Callable[[], Scores]) -> None:
        """Score a part of `count` pictures. Raises Unscorable once the first PATIENCE of all have failed."""
        try:
            self.parts.append(score())
        except Unscorable as error:
            self.lose(count, error)
            self.failed += count
            if self._good() is None and self.failed >= PATIENCE:
                raise

    def lose(self, count: int, cause: BenchError) -> None:
        """Count pictures that have no scores."""
        self.parts.append((count, cause))

    def _good(self) -> Scores | None:
        return next((part for part in self.parts if isinstance(part, Scores)), None)

    def whole(self) -> Scores | None:
        """All scores in order; None if there was nothing to score. Raises the first cause if none was scored."""
        if (good := self._good()) is None:
            for part in self.parts:
                if not isinstance(part, Scores):
                    raise part[1]
            return None
        return stacked([
            part if isinstance(part, Scores) else unscored(good, part[0], one_line(part[1])) for part in self.parts
        ])  # fmt: skip


def score_each(task: Task, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
    """`task.score`; where it fails, every picture by itself, and NaN for those that fail alone.

    Errors that are not about a picture (a missing weight, no memory) are raised, and Unscorable if no picture can be
    scored.
    """
    try:
        return _some(blanked(task.score(images_BCHW, prompts), task.headline), task.name)
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a scorer may raise anything
        if len(prompts) == 1:
            raise Unscorable(f"the scorer of task {task.name!r} fails: {one_line(error)}") from error
    parts: list[Scores | str] = []
    for i in range(len(prompts)):
        try:
            parts.append(blanked(task.score(images_BCHW[i : i + 1], prompts[i : i + 1]), task.headline))
        except (BenchError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            parts.append(one_line(error))
    good = next((part for part in parts if isinstance(part, Scores)), None)
    if good is None:
        raise Unscorable(f"the scorer of task {task.name!r} fails on every picture: {parts[0]}")
    whole = stacked([part if isinstance(part, Scores) else unscored(good, 1, part) for part in parts])
    return _some(whole, task.name)


def _some(scores: Scores, task: str) -> Scores:
    """The scores. Raises Unscorable if they are none at all."""
    if len(scores.rewards) and np.isnan(scores.rewards).all():
        raise Unscorable(cause_of(scores.details) or f"the scorer of task {task!r} gives no picture a score")
    return scores


def cause_of(details: list[dict]) -> str:
    """Why the first picture that says so has no scores, shortened; empty if none does."""
    return next((str(detail[FAILURE])[:500] for detail in details if FAILURE in detail), "")


def blanked(scores: Scores, headline: str) -> Scores:
    """NaN in the reward and in every metric of a picture that lacks its reward or its headline: half of a score would
    count in one mean and not in the other."""
    lost = np.isnan(scores.rewards) | np.isnan(scores.metrics.get(headline, scores.rewards))
    metrics = {name: np.where(lost, np.nan, values) for name, values in scores.metrics.items()}
    return Scores(np.where(lost, np.nan, scores.rewards), metrics, scores.details)


def rows_of(task: Task, scores: Scores) -> dict[str, np.ndarray]:
    """metric -> values [B], the reward among them. Raises BenchError for a scorer without the task's headline, and for
    one that calls a metric as the reward."""
    if REWARD in scores.metrics:
        raise BenchError(f"the scorer of {task.name!r} calls a metric {REWARD!r}, which the reward itself is called")
    rows = {REWARD: scores.rewards} | scores.metrics
    if task.headline not in rows:
        raise BenchError(f"the scorer of {task.name!r} gives {', '.join(rows)}, not its headline {task.headline!r}")
    return rows


def unscored(like: Scores, count: int, cause: str) -> Scores:
    """Pictures without scores, with the metrics of `like`, and why."""
    lost = {name: np.full(count, np.nan) for name in like.metrics}
    return Scores(np.full(count, np.nan), lost, [{FAILURE: cause} for _ in range(count)])


def stacked(parts: list[Scores]) -> Scores:
    """Several batches' scores as one. Raises BenchError for a scorer that gives other metrics each time."""
    names = list(parts[0].metrics)
    for part in parts:
        if set(part.metrics) != set(names):
            raise BenchError(f"a scorer gives metrics {names} for some pictures and {list(part.metrics)} for others")
    metrics = {name: np.concatenate([part.metrics[name] for part in parts]) for name in names}
    told = any(part.details for part in parts)
    details = [detail for part in parts for detail in part.details or told * len(part.rewards) * [{}]]
    return Scores(np.concatenate([part.rewards for part in parts]), metrics, details)
