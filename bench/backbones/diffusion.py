"""The network of a diffusion model as a velocity field on the path of bench/sampler/diffusion_levels.py."""

import torch
from torch import Tensor

from bench.sampler.diffusion_levels import DiffusionLevels


class Diffusion:
    """What a network takes and predicts, for states y = (1 - s) x0 + s eps at levels s."""

    def __init__(self, levels: DiffusionLevels, predicts: str, device: str):
        """`predicts` is epsilon, v_prediction (arXiv 2202.00512) or sample."""
        self.predicts = predicts
        self._levels = torch.tensor(levels.sigmas, dtype=torch.float32, device=device)

    def inputs(self, y: Tensor, s_B: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy image alpha x0 + sigma eps [B, C, h, w] and its timestep [B], for levels s [B].

        Between the levels of two timesteps, the timestep is interpolated linearly in sigma / alpha = s / (1 - s).
        """
        last = len(self._levels) - 1
        above = torch.searchsorted(self._levels, s_B.contiguous()).clamp(1, last)
        lower, upper = self._levels[above - 1], self._levels[above]
        # (s / (1 - s) - lower / (1 - lower)) / (the same at upper), which holds at upper = 1, too
        part = (s_B - lower) * (1 - upper) / ((upper - lower) * (1 - s_B))
        timestep = above - 1 + torch.where(s_B >= upper, 1.0, part)
        return y / _column(torch.hypot(1 - s_B, s_B)), timestep.clamp(0, last)

    def velocity(self, predicted: Tensor, y: Tensor, s_B: Tensor) -> Tensor:
        """The velocity eps - x0 [B, C, h, w] in float32 that a prediction at y [B, C, h, w] and levels s [B] means."""
        predicted, s = predicted.float(), _column(s_B)
        if self.predicts == "epsilon":  # x0 = (y - s eps) / (1 - s)
            return (predicted - y) / (1 - s)
        if self.predicts == "sample":  # y = x0 + s velocity
            return (y - predicted) / s
        # v = alpha eps - sigma x0, and alpha + sigma = 1 / norm.
        return (predicted + (2 * s - 1) * y / torch.hypot(1 - s, s)) / torch.hypot(1 - s, s)


def _column(values_B: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values_B.view(-1, 1, 1, 1)
