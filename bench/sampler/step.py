"""The step kernel: guidance, mean, noise and log-probability of one transition (the torch reference)."""

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
    """One transition taken. Nothing is detached: callers detach where an estimator asks to."""

    next: Tensor
    velocity: Tensor
    """Guided velocity, [B, ...]."""
    log_prob: Tensor | None
    """Log-density of `next`, [B], summed over elements; None for a deterministic transition."""


def guided(v_cond: Tensor, v_uncond: Tensor | None, guidance: float) -> Tensor:
    """Classifier-free guidance v_u + w (v_c - v_u) (arXiv 2207.12598); v_cond when there is no second branch."""
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

    `noise` [B, ...] is standard normal and needed when at.c > 0; `x0_prev` [B, ...] when at.d != 0. Arithmetic runs
    in float32 or wider whatever the inputs' type; `next` comes back in x's type. Without gradients a GPU does all of it
    in one pass (bench/sampler/triton_step.py).
    """
    if at.c and noise is None:
        raise ValueError("a stochastic transition needs noise")
    if (kernels := fused(x)) and not torch.is_grad_enabled():
        return Step(*kernels.fused_step(
            x, v_cond, at, v_uncond=v_uncond, guidance=guidance, noise=noise if at.c else None,
            x0_prev=x0_prev if at.d else None,
        ))  # fmt: skip
    dtype = torch.promote_types(x.dtype, torch.float32)
    velocity = guided(v_cond.to(dtype), None if v_uncond is None else v_uncond.to(dtype), guidance)
    transition = Transition(x.to(dtype), velocity, at, x0_prev)
    taken = transition.mean if noise is None or not at.c else transition.sample(noise.to(dtype))
    # The drawn state is data for the density: no gradient through it (REINFORCE, arXiv 2505.05470).
    log_prob = transition.log_prob(taken.detach()) if at.c else None
    return Step(taken.to(x.dtype), velocity, log_prob)
