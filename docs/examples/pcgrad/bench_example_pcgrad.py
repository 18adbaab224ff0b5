"""Analytic OPD whose task gradients are projected off one another where they conflict (PCGrad, arXiv 2001.06782)."""

import torch
from torch import Tensor

from bench.api.lab import Lab
from methods.opd_analytic import OpdAnalytic


class OpdPcGrad(OpdAnalytic):
    """A method that differs from another in its rule for the tasks' gradients alone."""

    name = "opd_pcgrad"
    source = "DiffusionOPD, arXiv 2605.15055, with PCGrad, arXiv 2001.06782, Alg. 1"

    def combine(self, lab: Lab, gradients: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        """The weighted sum of the gradients, each without what conflicts with the others, met in random order."""
        order = lab.numpy_generator("pcgrad")  # the same order in every process
        names = list(gradients)
        total = torch.zeros_like(gradients[names[0]])
        for task in names:
            mine = gradients[task].clone()
            for other in order.permutation([name for name in names if name != task]):
                against = gradients[other]
                product = mine @ against
                if product < 0:
                    mine -= product / (against @ against) * against
            total += weights[task] * mine
        return total
