"""The distribution of a transition: a Gaussian with one mean per element and a scalar standard deviation."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.lazy import torch
from bench.sampler.backend import fused
from bench.sampler.distance import squared_distance
from bench.sampler.transitions import Coefficients

if TYPE_CHECKING:
    from torch import Tensor


class Gaussian:
    """N(mean, std^2 I). `mean` is [B, ...]; `std` is the true standard deviation, including any factor sqrt(h)."""

    def __init__(self, mean: Tensor, std: float):
        self._mean, self.std = mean, std

    @property
    def mean(self) -> Tensor:
        """Mean [B, ...]."""
        return self._mean

    def sample(self, noise: Tensor) -> Tensor:
        """The sample mean + std noise, [B, ...], for standard normal noise [B, ...]."""
        return self.mean + self.std * noise if self.std else self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x, [B], summed over all elements of a sample, in float32 or wider.

        Raises BenchError at std 0, where there is no density. (Flow-GRPO averages over elements; divide by their
        number to reproduce it.)
        """
        if self.std == 0:
            raise BenchError("a deterministic transition has no log-probability; use a stochastic kernel with eta > 0")
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        squares = ((x.to(dtype) - self.mean.to(dtype)) / self.std).square()
        negative = 0.5 * squares + math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return -negative.flatten(1).sum(1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other), [B], summed over elements: |mean difference|^2 / (2 std^2).

        At std 0, where the KL is infinite, it is 0.5 |mean difference|^2: mean matching (DiffusionOPD, arXiv
        2605.15055, Eq. 12). Raises BenchError if the standard deviations differ, because this closed form needs equal
        ones.
        """
        if self.std != other.std:
            raise BenchError(f"the KL needs equal standard deviations, got {self.std:g} and {other.std:g}")
        gap = squared_distance(self.mean, other.mean)
        return gap / (2 * self.std**2) if self.std else 0.5 * gap


class Transition(Gaussian):
    """The distribution of the next state, given x and a (guided) velocity v, both [B, ...].

    The mean is a x + b v (+ d x0_prev). It is computed on first access, because the fused log-density on a GPU and its
    gradient do not need it.
    """

    def __init__(self, x: Tensor, velocity: Tensor, at: Coefficients, x0_prev: Tensor | None = None):
        self.x, self.velocity, self.at, self.x0_prev, self.std = x, velocity, at, x0_prev, at.c

    @cached_property
    def mean(self) -> Tensor:
        """Mean [B, ...]."""
        mean = self.at.a * self.x + self.at.b * self.velocity
        if not self.at.d:
            return mean
        assert self.x0_prev is not None, "a multistep kernel needs x0_prev"
        return mean + self.at.d * self.x0_prev

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density [B] as in Gaussian, computed in one pass on a GPU, with gradients to the velocity."""
        # The fused kernel differentiates with respect to the velocity only, and has no multistep term.
        kernels = fused(self.velocity) if self.std and not self.at.d else None
        if kernels and not (self.x.requires_grad or x.requires_grad):
            return kernels.fused_log_prob(self.x, self.velocity, x, self.at)
        return super().log_prob(x)
