"""How much of the tasks' gradients is signal: rules for combining gradients are of no use on noise.

The gradients of successive updates have nearly the same expectation and independent noise, so that their cosine
estimates the share of the signal in a gradient's squared norm, |E g|^2 / E|g|^2. Gradients are compared on every n-th
element only, at most SAMPLE of them, which a checkpoint can hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 65_536
"""Elements of a gradient that are compared; the cosine of two independent vectors of this length is within .01 of 0."""
MOSTLY = 0.5
"""Share of the signal below which a gradient is mostly noise."""


def signal_shares(rows: list[dict[str, float]]) -> dict[str, float]:
    """task -> mean of the logged signal/TASK over a run's rows of metrics, without the first, which is always 0."""
    names = sorted({name for row in rows for name in row if name.startswith("signal/")})
    values = {name.partition("/")[2]: [row[name] for row in rows if name in row][1:] for name in names}
    return {task: sum(found) / len(found) for task, found in values.items() if found}


class Signal:
    """The cosines between a task's gradients in successive optimiser steps."""

    def __init__(self) -> None:
        self._last: dict[str, Tensor] = {}

    def cosine(self, task: str, gradient_P: Tensor) -> Tensor:
        """Cosine with the task's last gradient, a scalar on the gradient's device; 0 if there is none."""
        sample = gradient_P[:: -(-len(gradient_P) // SAMPLE)].float()
        last = self._last.get(task)
        self._last[task] = sample.clone()
        if last is None:
            return sample.new_zeros(())
        last = last.to(sample.device)
        return sample @ last / (sample.norm() * last.norm()).clamp(min=torch.finfo(sample.dtype).tiny)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs: the sampled last gradients."""
        return {f"gradient/{task}": sample for task, sample in self._last.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        prefix = "gradient/"
        self._last = {name.removeprefix(prefix): sample for name, sample in state.items() if name.startswith(prefix)}
