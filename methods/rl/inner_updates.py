"""Several optimiser steps on the images of one update, each on its own share of the prompts."""

from __future__ import annotations

from bench.errors import UsageError
from bench.sampler.draws import Rows


def check_inner_updates(engine: str, groups: int, inner_updates: int) -> None:
    """Raise UsageError unless the prompt groups can be divided evenly among the inner updates."""
    if groups % inner_updates:
        raise UsageError(f"params.groups {groups} is not divisible by params.{engine}.inner_updates {inner_updates}")


def inner_rows(count: int, rows: Rows | None, inner_updates: int, inner: int) -> tuple[range, int]:
    """Which of this process's `count` images inner update `inner` trains on, and how many all processes train on.

    Each inner update trains on its own share of the whole batch's prompts. Images are in prompt order, so a share is
    contiguous; a process may have none of it.
    """
    rows = rows or Rows(0, count, count)
    each = count // (rows.stop - rows.start)  # images per prompt; 1 where rows are counted in images
    start, stop = (part * rows.whole // inner_updates for part in (inner, inner + 1))
    first = max(start, rows.start) - rows.start
    last = min(stop, rows.stop) - rows.start
    mine = range(first * each, max(first, last) * each)
    return mine, (stop - start) * each
