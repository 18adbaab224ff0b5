"""Held-out splits of thirteen prompts, for tests of what happens around an evaluation and not of its scores."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from bench.registry import find

TASKS = ("geneval", "ocr", "pickscore")
FEW = 13
"""Odd, so that two processes have unequal shards."""


def few_prompts(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Keep every so manieth prompt of the held-out splits, so that each stratum keeps some; training prompts stay."""
    for name in TASKS:
        task_class = find("task", name)
        patch(task_class, "prompts", _thinned(task_class.prompts))


def _thinned(honest: Callable) -> Callable:
    @wraps(honest)
    def prompts(self, split: str) -> list:
        whole = honest(self, split)
        return whole if split == "train" else whole[:: max(1, len(whole) // FEW)][:FEW]

    return prompts
