"""The steps of a trajectory that are trained, in distillation and in policy-gradient RL."""

from bench.sampler.rollout import Sampler


def trained_steps(sampler: Sampler, fraction: float, noisy: bool = False) -> list[int]:
    """Indices of the first int(steps * fraction) steps; with `noisy` only those that add noise (have a density)."""
    steps = range(int(sampler.steps * fraction))
    return [k for k in steps if sampler.coefficients[k].c or not noisy]
