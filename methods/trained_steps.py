"""Which steps of a trajectory are trained, for distillation and policy gradients alike."""

from bench.sampler.rollout import Sampler


def trained_steps(sampler: Sampler, fraction: float, noisy: bool = False) -> list[int]:
    """Indices of the trained steps; with `noisy` only those whose kernel has a density."""
    return [k for k in range(int(sampler.steps * fraction)) if sampler.coefficients[k].c or not noisy]
