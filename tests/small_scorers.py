"""Scorers of photographs that look at small images, for tests that are not about what they see.

GenEval's detector sees images at 800 pixels, and RapidOCR's enlarges them to 736: most of a short run's time.
"""

from collections.abc import Callable
from typing import Any

SIDE = 96


def small_scorers(patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Shorter sides of SIDE pixels, and one held-out prompt for each of GenEval's tags."""
    from tasks.geneval import detector, task
    from tasks.ocr.engine import _engine

    patch(detector, "SHORT_SIDE", SIDE)
    patch(task, "HELD_OUT_PER_TAG", 1)
    patch(_engine()._load_det_model(), "limit_side_len", SIDE)
