"""A sum of losses that stays on the device until it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Total:
    """The sum of scalar tensors in float64. Reading every one of them would make the host wait for the device."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, piece: Tensor) -> None:
        """Add a scalar; no gradient flows through the sum."""
        value = piece.detach().double()
        self._sum = value if self._sum is None else self._sum + value

    def __float__(self) -> float:
        """The sum so far, for which the host waits; 0 of nothing."""
        return 0.0 if self._sum is None else float(self._sum)
