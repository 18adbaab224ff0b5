"""When a run's tasks draw training prompts: from the past follows which prompts will be needed next."""

from collections.abc import Iterator
from dataclasses import dataclass, field

FURTHEST = 256
"""Number of updates that are foreseen."""


@dataclass
class Draws:
    """The updates in which tasks drew prompts. A task draws as many again, after as many updates as the last time."""

    last: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """task -> (update in which it drew, updates since it had drawn before or 0, prompts)."""

    def add(self, task: str, step: int, count: int) -> None:
        """A task draws `count` prompts in this update."""
        before = self.last.get(task)
        if not count or (before and before[0] == step):  # nothing, or again in one update
            return
        self.last[task] = step, step - before[0] if before else 0, count

    def upcoming(self, step: int) -> Iterator[tuple[str, int, int]]:
        """(task, later update, prompts) of the next updates; nothing for tasks that have drawn only once, or that did
        not draw when it was their turn."""
        known = {task: drawn for task, drawn in self.last.items() if drawn[1] and sum(drawn[:2]) >= step}
        if known:
            for later in range(step + 1, step + 1 + FURTHEST):
                yield from (
                    (task, later, count) for task, (at, period, count) in known.items() if (later - at) % period == 0
                )
