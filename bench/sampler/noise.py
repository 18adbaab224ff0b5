"""Standard normal noise from counters: every number is a function of a key, its row and its place in the row.

A row's noise depends on nothing else, so a process or a part of a batch computes its own rows only, on its own device.
Generators such as torch's, in contrast, must be advanced through all rows of the batch and give other numbers on a GPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

WORD = 2**32 - 1
"""Mask of the low 32 bits."""
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
AT_ONCE = 2**22
"""Counters per pass; each takes about 150 bytes while it is computed."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), in integer arithmetic.

    `counter` holds four tensors of 32-bit words stored as int64, and `key` has 64 bits. Returns four such tensors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & WORD, key >> 32
    for _ in range(ROUNDS):
        # The products overflow int64's sign bit, which leaves all 64 bits of the unsigned product in place.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & WORD, (p1 >> 32) & WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & WORD, high0 ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def noise(key: int, rows: range, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal float32 noise [len(rows), *shape] of rows of a batch, by Philox and the Box-Muller transform.

    It is computed in float64 and rounded once, because the logarithms and cosines of two devices differ in their last
    bits: their float32 results then differ in about one number out of a hundred million.
    """
    size = math.prod(shape)
    if not size or not len(rows):
        return torch.empty(len(rows), *shape, device=device)
    blocks = -(-size // 4)  # Philox makes four numbers per counter
    together = max(1, AT_ONCE // blocks)
    starts = range(rows.start, rows.stop, together)
    parts = [_normals(key, range(at, min(at + together, rows.stop)), blocks, device)[:, :size] for at in starts]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(len(rows), *shape)


def _normals(key: int, rows: range, blocks: int, device: torch.device | str) -> Tensor:
    """Normal numbers [len(rows), 4 * blocks]: word 0 of a counter is the block in its row, and word 1 the row."""
    block = torch.arange(blocks, device=device).expand(len(rows), blocks)
    row = torch.arange(rows.start, rows.stop, device=device)[:, None].expand(len(rows), blocks)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = torch.stack(philox((block, row, zero, zero), key), -1)
    # In the middle of 2^32 equal intervals, so that the logarithm is finite.
    uniform = (words.double() + 0.5) / 2**32
    radius = (-2 * uniform[..., 0::2].log()).sqrt()
    angle = 2 * math.pi * uniform[..., 1::2]
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return pairs.float().view(len(rows), 4 * blocks)
