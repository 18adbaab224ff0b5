"""Sampling a trajectory: schedule + kernel + velocity field -> states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from bench.lazy import torch
from bench.sampler.draws import normal
from bench.sampler.schedule import Schedule, make_schedule
from bench.sampler.step import Step, step
from bench.sampler.transitions import KERNELS, Coefficients, Kernel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """A schedule with a kernel at a noise level eta."""

    schedule: Schedule
    kernel: Kernel
    eta: float = 0.0

    @cached_property
    def coefficients(self) -> list[Coefficients]:
        return self.kernel.coefficients(self.schedule, self.eta)

    @property
    def steps(self) -> int:
        return self.schedule.steps

    @property
    def stochastic(self) -> bool:
        return any(at.c for at in self.coefficients)


def euler(steps: int, shift: float, table: str = "diffusers") -> Sampler:
    """The deterministic Euler sampler, as every evaluation uses it. Raises what `make_schedule` raises."""
    return Sampler(make_schedule(steps, shift, table), KERNELS["ode"])


@dataclass
class Trajectory:
    """States visited by a batch of rollouts."""

    final: Tensor
    """Latents at sigma 0, [B, C, H, W]."""
    states: list[Tensor] = field(default_factory=list)
    """steps + 1 states from sigma 1 to 0, each [B, C, H, W]; empty unless kept."""
    velocities: list[Tensor] = field(default_factory=list)
    """Guided velocity at each of the first `steps` states; empty unless kept."""
    log_probs: list[Tensor | None] = field(default_factory=list)
    """Log-density of each drawn state, [B]; None for deterministic steps."""


Velocity = Callable[["Tensor", "float | Tensor"], "Tensor"]
"""(x [B, C, H, W], sigma: one, or one per sample [B]) -> guided velocity, same shape."""


def walk(
    velocity: Velocity, x: Tensor, sampler: Sampler, generator: torch.Generator
) -> Iterator[tuple[int, Tensor, Step]]:
    """Drive a rollout step by step: yields (k, state, step taken) and goes on from the DETACHED next state.

    The velocity is evaluated when the step is asked for, under whatever gradient mode the caller is in, so a method
    can use one forward both to move on and to learn. Noise is drawn from `generator` on the CPU and moved, which
    makes it the same on every device; deterministic steps draw none.
    """
    x0_prev, multistep = None, any(at.d for at in sampler.coefficients)
    for k, at in enumerate(sampler.coefficients):
        noise = normal(x.shape, generator).to(x.device, x.dtype) if at.c else None
        v = velocity(x, sampler.schedule.sigmas[k])
        with torch.no_grad():
            taken = step(x, v, at, noise=noise, x0_prev=x0_prev)
            if multistep:
                x0_prev = x - sampler.schedule.sigmas[k] * v
        yield k, x, Step(taken.next, v, taken.log_prob)
        x = taken.next


def rollout(
    velocity: Velocity, x: Tensor, sampler: Sampler, generator: torch.Generator, keep: bool = False
) -> Trajectory:
    """Sample from x [B, C, H, W] at sigma 1 down to sigma 0 without gradients; `keep` stores states on the way."""
    states, velocities, log_probs = [], [], []
    taken = None
    with torch.no_grad():
        for _, state, taken in walk(velocity, x, sampler, generator):
            if keep:
                states.append(state)
                velocities.append(taken.velocity)
                log_probs.append(taken.log_prob)
    assert taken is not None
    return Trajectory(taken.next, [*states, taken.next] if keep else [], velocities, log_probs)
