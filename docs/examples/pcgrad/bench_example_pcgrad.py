"""Analytic OPD with PCGrad (arXiv 2001.06782): conflicting task gradients are projected off each other."""

import torch
from torch import Tensor

from bench.api.lab import Lab
from methods.opd_analytic import OpdAnalytic


class OpdPcGrad(OpdAnalytic):
    """Analytic OPD with a different rule for combining the tasks' gradients."""

    name = "opd_pcgrad"
    source = "DiffusionOPD, arXiv 2605.15055, with PCGrad, arXiv 2001.06782, Alg. 1"

    def combine(self, lab: Lab, gradients: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        """The weighted sum of the gradients, each projected off those it conflicts with, in random order (Alg. 1)."""
        order = lab.numpy_generator("pcgrad")  # the same order in every process
        names = list(gradients)
        total = torch.zeros_like(gradients[names[0]])
        for task in names:
            mine = gradients[task].clone()
            others = [name for name in names if name != task]
            for other in order.permutation(others):
                against = gradients[other]
                product = mine @ against
                if product < 0:
                    mine -= product / (against @ against) * against
            total += weights[task] * mine
        return total
