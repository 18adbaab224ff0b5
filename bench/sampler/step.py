"""One sampling step: guidance, mean, noise and log-probability of a transition (the torch reference)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.lazy import torch
from bench.sampler.backend import fused
from bench.sampler.gaussian import Transition
from bench.sampler.transitions import Coefficients

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Step:
    """The result of one transition. Nothing is detached; callers detach what their estimator requires."""

    next: Tensor
    """The next state, [B, ...]."""
    velocity: Tensor
    """Guided velocity, [B, ...]."""
    log_prob: Tensor | None
    """Log-density of `next`, [B], summed over elements; None for a deterministic transition."""


def guided(v_cond: Tensor, v_uncond: Tensor | None, guidance: float) -> Tensor:
    """Classifier-free guidance v_u + w (v_c - v_u) (arXiv 2207.12598); v_cond without an unconditional branch."""
    return v_cond if v_uncond is None else torch.lerp(v_uncond, v_cond, guidance)


def step(
    x: Tensor,
    v_cond: Tensor,
    at: Coefficients,
    *,
    v_uncond: Tensor | None = None,
    guidance: float = 1.0,
    noise: Tensor | None = None,
    x0_prev: Tensor | None = None,
) -> Step:
    """Take one transition from x [B, ...].

    `noise` [B, ...] is standard normal and required if at.c > 0, and `x0_prev` [B, ...] if at.d != 0. The computation
    is in float32 or wider for inputs of any type, and `next` has x's type. Without gradients it is a single pass on a
    GPU (bench/sampler/triton_step.py). Raises ValueError if the noise is missing.
    """
    if at.c and noise is None:
        raise ValueError("a stochastic transition needs noise")
    kernels = fused(x)
    if kernels and not torch.is_grad_enabled():
        following, velocity, log_prob = kernels.fused_step(
            x,
            v_cond,
            at,
            v_uncond=v_uncond,
            guidance=guidance,
            noise=noise if at.c else None,
            x0_prev=x0_prev if at.d else None,
        )
        return Step(following, velocity, log_prob)
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide_uncond = None if v_uncond is None else v_uncond.to(dtype)
    velocity = guided(v_cond.to(dtype), wide_uncond, guidance)
    transition = Transition(x.to(dtype), velocity, at, x0_prev)
    taken = transition.mean if noise is None or not at.c else transition.sample(noise.to(dtype))
    # No gradient flows through the sampled state, which the density treats as data (REINFORCE, arXiv 2505.05470).
    log_prob = transition.log_prob(taken.detach()) if at.c else None
    return Step(taken.to(x.dtype), velocity, log_prob)
