"""Scoring that survives a picture that a scorer cannot take: NaN for it alone, never 0."""

import numpy as np
import torch
from torch import Tensor

from bench.errors import BenchError, one_line
from bench.task import Prompt, Scores, Task


def score_each(task: Task, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
    """`task.score`; where it fails, every picture by itself, and NaN for those that fail alone.

    Errors that are not about a picture (a missing weight, no memory) are raised, and so is the first error if no
    picture can be scored.
    """
    try:
        return blanked(task.score(images_BCHW, prompts))
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a scorer may raise anything
        if len(prompts) == 1:
            raise BenchError(f"the scorer of task {task.name!r} fails: {one_line(error)}") from error
    parts: list[Scores | None] = []
    causes = []
    for i in range(len(prompts)):
        try:
            parts.append(blanked(task.score(images_BCHW[i : i + 1], prompts[i : i + 1])))
        except (BenchError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            parts.append(None)
            causes.append(one_line(error))
    good = next((part for part in parts if part), None)
    if good is None:
        raise BenchError(f"the scorer of task {task.name!r} fails on every picture: {causes[0]}")
    return stacked([part or unscored(good) for part in parts])


def blanked(scores: Scores) -> Scores:
    """NaN in every metric of a picture whose reward is NaN."""
    lost = np.isnan(scores.rewards)
    metrics = {name: np.where(lost, np.nan, values) for name, values in scores.metrics.items()}
    return Scores(scores.rewards, metrics, scores.details)


def unscored(like: Scores) -> Scores:
    """One picture without scores, with the metrics of `like`."""
    details = [{} for _ in like.details[:1]]
    return Scores(np.full(1, np.nan), {name: np.full(1, np.nan) for name in like.metrics}, details)


def stacked(parts: list[Scores]) -> Scores:
    """Several batches' scores as one."""
    metrics = {name: np.concatenate([part.metrics[name] for part in parts]) for name in parts[0].metrics}
    details = [detail for part in parts for detail in part.details]
    return Scores(np.concatenate([part.rewards for part in parts]), metrics, details)
