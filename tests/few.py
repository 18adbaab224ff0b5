"""Held-out splits of a dozen prompts or so, for tests of what happens around an evaluation and not of its scores."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from bench.registry import find

TASKS = ("geneval", "ocr", "pickscore")
FEW = {"validation": 13, "test": 15}
"""Odd, so that two processes have unequal shards, and unlike each other, so that splits are not confused."""


BENCH = "from tests.few import few_prompts; few_prompts(); from bench.cli.app import main; main()"
"""`python -m bench` with few prompts, for an interpreter that has this folder's parent on its path."""


def few_prompts(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Keep every so manieth prompt of the held-out splits, so that each stratum keeps some; training prompts stay."""
    for name in TASKS:
        task_class = find("task", name)
        patch(task_class, "prompts", _thinned(task_class.prompts))


def _thinned(honest: Callable) -> Callable:
    @wraps(honest)
    def prompts(self, split: str) -> list:
        whole = honest(self, split)
        kept = FEW.get(split, len(whole))
        return whole[:: max(1, len(whole) // kept)][:kept] if whole else whole

    return prompts
