"""Classifier-free guidance. This file does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def classifier_free(v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
    """v_u + w (v_c - v_u) (arXiv 2207.12598): the guided velocity of those with and without the prompt."""
    return v_uncond + guidance * (v_cond - v_uncond)
