"""What a transition is: a Gaussian with a mean per element and one scalar standard deviation."""

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
    """N(mean, std^2 I). `mean` is [B, ...]; `std` is the TRUE standard deviation (any sqrt(h) is inside)."""

    def __init__(self, mean: Tensor, std: float):
        self._mean, self.std = mean, std

    @property
    def mean(self) -> Tensor:
        return self._mean

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, in the mean's dtype."""
        return self.mean + self.std * noise if self.std else self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of x, [B], SUMMED over all elements of a sample, in float32 or wider.

        Raises BenchError at std 0, where no density exists. (Flow-GRPO averages over elements instead of summing:
        divide by the element count to follow it.)
        """
        if self.std == 0:
            raise BenchError("a deterministic transition has no log-probability; use a stochastic kernel with eta > 0")
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        squares = ((x.to(dtype) - self.mean.to(dtype)) / self.std).square()
        return -(0.5 * squares + math.log(self.std) + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other), [B], summed over elements: |mean difference|^2 / (2 std^2).

        At std 0, where KL is infinite, 0.5 |mean difference|^2: mean matching (DiffusionOPD Eq. 12). Raises
        BenchError when the two standard deviations differ: the closed form here is for a common kernel.
        """
        if self.std != other.std:
            raise BenchError(f"KL needs one common std, got {self.std:g} and {other.std:g}")
        gap = squared_distance(self.mean, other.mean)
        return gap / (2 * self.std**2) if self.std else 0.5 * gap


class Transition(Gaussian):
    """The Gaussian of the next state from x and a (guided) velocity, both [B, ...]: mean = a x + b v (+ d x0_prev).

    The mean is made when it is asked for: on a GPU the log-density, with its gradient, needs none.
    """

    def __init__(self, x: Tensor, velocity: Tensor, at: Coefficients, x0_prev: Tensor | None = None):
        self.x, self.velocity, self.at, self.x0_prev, self.std = x, velocity, at, x0_prev, at.c

    @cached_property
    def mean(self) -> Tensor:
        mean = self.at.a * self.x + self.at.b * self.velocity
        if not self.at.d:
            return mean
        assert self.x0_prev is not None  # a multistep kernel is given it
        return mean + self.at.d * self.x0_prev

    def log_prob(self, x: Tensor) -> Tensor:
        """As Gaussian's. On a GPU in one pass, with gradients to the velocity."""
        kernels = fused(self.velocity) if self.std and not self.at.d else None
        if kernels and not (self.x.requires_grad or x.requires_grad):
            return kernels.fused_log_prob(self.x, self.velocity, x, self.at)
        return super().log_prob(x)
