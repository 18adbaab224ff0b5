"""Weights of the per-step losses. Published code calls all of them "the KL", with four different divisors."""

from typing import Literal

from bench.errors import unknown
from bench.sampler.rollout import Sampler

Weighting = Literal["kl", "no_dt", "mean_matching", "velocity", "x0"]
"""Names of the weightings."""
WEIGHTINGS: dict[Weighting, str] = {
    "kl": "b^2 / (2 c^2): the Gaussian KL (DiffusionOPD Eq. 11); b^2 / 2 where c = 0",
    "no_dt": "as kl, times h on flow_sde: released code omits sqrt(h) from that kernel's std; b^2 / 2 where c = 0",
    "mean_matching": "b^2 / 2 (DiffusionOPD Eq. 12)",
    "velocity": "1: plain velocity error (DanceOPD, arXiv 2606.27377)",
    "x0": "sigma^2: error of the predicted image x - sigma v (loss target x0 of Flow-Factory)",
}
"""The weight of |v_student - v_teacher|^2 under each weighting; b and c are those of the transition."""


def released_kl_factor(sampler: Sampler, k: int) -> float:
    """Ratio of the KL of step k in released code to the true KL: h if the code omits sqrt(h) from the std, else 1."""
    return sampler.schedule.h(k) if sampler.kernel.code_omits_sqrt_h else 1.0


def step_weights(sampler: Sampler, weighting: str) -> list[float]:
    """Weight of |v_student - v_teacher|^2 at each step. Raises UsageError for an unknown weighting."""
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    weights = []
    for k, at in enumerate(sampler.coefficients):
        if weighting == "velocity":
            weights.append(1.0)
        elif weighting == "x0":
            weights.append(sampler.schedule.sigmas[k] ** 2)
        elif weighting == "mean_matching" or at.c == 0:
            weights.append(at.b**2 / 2)
        else:
            factor = released_kl_factor(sampler, k) if weighting == "no_dt" else 1.0
            weights.append(at.b**2 / (2 * at.c**2) * factor)
    return weights
