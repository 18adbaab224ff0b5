"""Per-step loss weights: what published code calls "the KL" with four different divisors."""

from typing import Literal

from bench.errors import unknown
from bench.sampler.rollout import Sampler

Weighting = Literal["kl", "no_dt", "mean_matching", "velocity"]
WEIGHTINGS: dict[Weighting, str] = {
    "kl": "b^2 / (2 c^2): the Gaussian KL (DiffusionOPD Eq. 11); b^2 / 2 where c = 0",
    "no_dt": "as kl, on flow_sde times h: released code leaves sqrt(h) out of that kernel's std; b^2 / 2 where c = 0",
    "mean_matching": "b^2 / 2 (DiffusionOPD Eq. 12)",
    "velocity": "1: plain velocity error (DanceOPD, arXiv 2606.27377)",
}


def released_kl_factor(sampler: Sampler, k: int) -> float:
    """What released code calls the KL of step k, over the true KL: h where it leaves sqrt(h) out of the std, else 1."""
    return sampler.schedule.h(k) if sampler.kernel.code_omits_sqrt_h else 1.0


def step_weights(sampler: Sampler, weighting: str) -> list[float]:
    """Weight of |v_student - v_teacher|^2 at each step. Raises UsageError for an unknown weighting."""
    if weighting not in WEIGHTINGS:
        raise unknown("weighting", weighting, WEIGHTINGS)
    weights = []
    for k, at in enumerate(sampler.coefficients):
        if weighting == "velocity":
            weights.append(1.0)
        elif weighting == "mean_matching" or at.c == 0:
            weights.append(at.b**2 / 2)
        else:
            weights.append(at.b**2 / (2 * at.c**2) * (released_kl_factor(sampler, k) if weighting == "no_dt" else 1.0))
    return weights
