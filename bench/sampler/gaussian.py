"""What a transition returns: a Gaussian with a mean per element and one scalar standard deviation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.errors import BenchError


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2 I). `mean` is [B, ...]; `std` is the TRUE standard deviation (any sqrt(h) is inside)."""

    mean: Tensor
    std: float

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

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other), [B], summed over elements: |mean difference|^2 / (2 std^2).

        At std 0, where KL is infinite, 0.5 |mean difference|^2: mean matching (DiffusionOPD Eq. 12). Raises
        BenchError when the two standard deviations differ: the closed form here is for a common kernel.
        """
        if self.std != other.std:
            raise BenchError(f"KL needs one common std, got {self.std:g} and {other.std:g}")
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        gap = (self.mean.to(dtype) - other.mean.to(dtype)).flatten(1).square().sum(1)
        return gap / (2 * self.std**2) if self.std else 0.5 * gap
