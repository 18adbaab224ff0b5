"""Latents as tokens: patches of 2 x 2 latent pixels, row by row, each with the channels of its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PATCH = 2


def packed(x: Tensor) -> Tensor:
    """Latents [B, C, h, w] -> tokens [B, h w / 4, 4 C]."""
    count, channels, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    patches = x.view(count, channels, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(count, rows * columns, channels * PATCH**2)


def unpacked(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens [B, h w / 4, 4 C] -> latents of the shape of x, [B, C, h, w]."""
    count, channels, height, width = x.shape
    patches = tokens.view(count, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
