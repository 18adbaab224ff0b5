"""Sampling trajectories of a velocity field with a schedule and a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from bench.lazy import torch
from bench.sampler.draws import normal
from bench.sampler.levels import Levels
from bench.sampler.schedule import Schedule
from bench.sampler.step import Step, step
from bench.sampler.transitions import KERNELS, Coefficients, Kernel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """A schedule and a kernel with its noise level eta."""

    schedule: Schedule
    kernel: Kernel
    eta: float = 0.0
    embedded_guidance: bool = False
    """Whether the network takes the guidance scale as an input, so that a guided velocity is one pass."""

    def passes(self, guidance: float) -> int:
        """Passes through the network per velocity at a guidance scale: one with and one without the prompt."""
        return 1 if self.embedded_guidance or guidance == 1 else 2

    @cached_property
    def coefficients(self) -> list[Coefficients]:
        """The coefficients of every step. Raises UsageError for an eta outside the kernel's range."""
        return self.kernel.coefficients(self.schedule, self.eta)

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return self.schedule.steps

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(at.c for at in self.coefficients)


def euler(
    levels: Levels, steps: int, table: str | None = None, shift: float | None = None, embedded_guidance: bool = False
) -> Sampler:
    """The deterministic Euler sampler of held-out evaluations. Raises UsageError as `Levels.schedule` does."""
    return Sampler(levels.schedule(steps, table, shift), KERNELS["ode"], embedded_guidance=embedded_guidance)


@dataclass
class Trajectory:
    """The states that a batch of rollouts visits."""

    final: Tensor
    """Latents of the images, [B, C, H, W]."""
    states: list[Tensor] = field(default_factory=list)
    """The steps + 1 states from noise to image, each [B, C, H, W]; empty unless kept."""
    velocities: list[Tensor] = field(default_factory=list)
    """Guided velocity at each of the first `steps` states; empty unless kept."""
    log_probs: list[Tensor | None] = field(default_factory=list)
    """Log-density [B] of the state that each step leads to, None for a deterministic step; empty unless kept."""


Velocity = Callable[["Tensor", "float | Tensor"], "Tensor"]
"""(x [B, C, H, W], sigma as a number or [B]) -> guided velocity of the same shape."""


def walk(
    velocity: Velocity, x: Tensor, sampler: Sampler, generator: torch.Generator
) -> Iterator[tuple[int, Tensor, Step]]:
    """Roll out step by step from standard normal noise x, or from the state at which the sampler's schedule begins.

    Yields (k, state, step) and continues from the detached next state.

    The velocity is computed when the caller asks for the step, in the caller's gradient mode, so that one forward pass
    can serve both sampling and learning. Deterministic steps draw no noise.
    """
    x0_prev = None
    if sampler.schedule.start != 1:
        x = sampler.schedule.start * x
    multistep = any(at.d for at in sampler.coefficients)
    for k, at in enumerate(sampler.coefficients):
        noise = normal(x.shape, generator, x.device).to(x.dtype) if at.c else None
        v = velocity(x, sampler.schedule.sigmas[k])
        # Without gradients, so that the next state does not depend on this step's graph; v keeps its own.
        with torch.no_grad():
            taken = step(x, v, at, noise=noise, x0_prev=x0_prev)
            if multistep:
                x0_prev = x - sampler.schedule.sigmas[k] * v
        yield k, x, Step(taken.next, v, taken.log_prob)
        x = taken.next


def rollout(
    velocity: Velocity, x: Tensor, sampler: Sampler, generator: torch.Generator, keep: bool = False
) -> Trajectory:
    """Sample images from x [B, C, H, W] as `walk`, without gradients; `keep` keeps the visited states."""
    states, velocities, log_probs = [], [], []
    taken = None
    with torch.no_grad():
        for _, state, taken in walk(velocity, x, sampler, generator):
            if keep:
                states.append(state)
                velocities.append(taken.velocity)
                log_probs.append(taken.log_prob)
    assert taken is not None, "a schedule has at least one step"
    if keep:
        states.append(taken.next)
    return Trajectory(taken.next, states, velocities, log_probs)
