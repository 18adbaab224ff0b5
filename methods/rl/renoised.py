"""What engines on the forward process see: re-noised images, and the velocities of three policies there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Renoised:
    """A chunk of B re-noised images in prompt order; latents and velocities are [B, C, h, w]."""

    x0: Tensor
    noise: Tensor
    x_t: Tensor
    """(1 - sigma) x0 + sigma noise."""
    sigma: Tensor
    """Noise level of each image, [B]."""
    advantages: Tensor
    """[B]"""
    v: Tensor
    """The student's velocity, with gradients."""
    v_old: Tensor
    v_reference: Tensor
    """Equal to v_old if the engine does not need the reference."""
    group_size: int
    """Images per prompt."""

    @property
    def target(self) -> Tensor:
        """The flow's own velocity, noise - x0."""
        return self.noise - self.x0

    def error(self, velocity: Tensor) -> Tensor:
        """Mean squared error [B] of a velocity to the flow's own."""
        return mean_square(velocity - self.target)


def mean_square(gap: Tensor) -> Tensor:
    """Mean over elements of the square, [B]."""
    return gap.square().flatten(1).mean(1)
