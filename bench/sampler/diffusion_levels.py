"""Noise levels of variance-preserving diffusion models, as those of a rectified flow.

Such a model was trained on x_t = alpha_t x0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1, at timesteps t = 0 to T - 1
(DDPM, arXiv 2006.11239, Eq. 4). Divided by alpha_t + sigma_t, and with s = sigma_t / (alpha_t + sigma_t), this is
y = (1 - s) x0 + s eps: the path of a rectified flow, whose velocity is eps - x0. Every kernel of
bench/sampler/transitions.py then applies. A step of any sampler of such models is an affine map of its estimates of x0
and eps plus noise, and only its scale is another one in y: `ode` is DDIM at eta 0 (arXiv 2010.02502) and Euler in
sigma_t / alpha_t (arXiv 2206.00364), `ddim` is DDIM with eta and, at eta 1, DDPM's posterior and Euler ancestral, and
`dpm2` is DPM-Solver++ 2M (arXiv 2211.01095).

Where N does not divide the number of timesteps, DDIMScheduler steps from a trailing or linspace timestep t to
t - T // N, and then calls the network at another one that it visits next. Here a step ends where the next one begins.

Diffusion models do not begin at s = 1 or end at s = 0. The first state is noise at the level of the first timestep,
which Schedule.start scales, and where samplers stop at the level of timestep 0, Schedule.end takes the last state back
to alpha_0 x0 + sigma_0 eps, which the VAE decodes.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from bench.errors import UsageError
from bench.sampler.levels import Levels
from bench.sampler.schedule import TRAIN_TIMESTEPS, Schedule

SPACINGS = {
    "leading": "every (T // N)-th timestep from the offset, as DDIM and Euler",
    "trailing": "N equal parts that begin at the last timestep",
    "linspace": "N points from the last timestep to the first, as DDIM",
    "euler_linspace": "as linspace, but not rounded to timesteps, as Euler",
    "dpm_leading": "every (T // (N + 1))-th timestep from the offset but the offset itself, as DPM-Solver",
    "dpm_linspace": "N + 1 points from the last timestep to the first, but the first itself, as DPM-Solver",
}
"""The tables of sigmas of a diffusion model: its timesteps in N steps, with diffusers' names (arXiv 2305.08891)."""


@dataclass(frozen=True)
class DiffusionLevels(Levels):
    """The levels of T = 1000 timesteps. Instances are hashable, because the levels are computed once."""

    schedule_name: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    """How the variances beta_t grow: linearly, or their square roots, or by Nichol and Dhariwal's cosine."""
    beta_start: float = 0.0001
    beta_end: float = 0.02
    zero_terminal_snr: bool = False
    """Whether the betas are rescaled so that the last level is noise alone (arXiv 2305.08891, Alg. 1)."""
    offset: int = 0
    """The first timestep of the leading tables."""
    to_zero: bool = True
    """Whether samplers end at s = 0; otherwise at the level of timestep 0."""
    full_noise: bool = True
    """Whether the first state has the variance 1 of a noisy image; otherwise only that of its noise, sigma_t^2."""
    table: str = "leading"
    tables: ClassVar[Collection[str]] = SPACINGS
    shift: ClassVar[None] = None  # type: ignore[misc]  # such a model has none

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The level s of every timestep, rising."""
        return _sigmas(self.schedule_name, self.beta_start, self.beta_end, self.zero_terminal_snr)

    def _schedule(self, steps: int, table: str, shift: float | None) -> Schedule:
        if shift is not None:
            raise UsageError("a timestep shift is for flow-matching models: leave out sampler.shift")
        sigmas = self.sigmas
        if table == "euler_linspace":
            visited = [_between(sigmas, t) for t in evenly(steps)]
        else:
            visited = [sigmas[t] for t in timesteps(steps, table, self.offset)]
        # A step from the level of timestep 0 to itself would do nothing: then the end is s = 0.
        last = 0.0 if self.to_zero or visited[-1] == sigmas[0] else sigmas[0]
        start = norm(visited[0]) if self.full_noise else visited[0]
        return Schedule((*visited, last), start, 1 / norm(last))

    def __str__(self) -> str:
        return f"diffusion, {self.schedule_name.replace('_', ' ')} betas"


def norm(s: float) -> float:
    """1 / (alpha + sigma) at level s = sigma / (alpha + sigma), where alpha^2 + sigma^2 = 1."""
    return math.hypot(1 - s, s)


def timesteps(steps: int, table: str, offset: int) -> list[int]:
    """The timesteps that diffusers' schedulers visit in so many steps, falling.

    Raises UsageError for steps that visit a timestep twice or one that does not exist.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise UsageError(f"steps must be at least 1 and at most {TRAIN_TIMESTEPS}, got {steps}")
    points = steps + 1 if table.startswith("dpm_") else steps
    if table == "trailing":
        # As numpy's arange: rounding to whole numbers must fall on the same side.
        step = (TRAIN_TIMESTEPS - TRAIN_TIMESTEPS / steps) - TRAIN_TIMESTEPS
        found = [round(TRAIN_TIMESTEPS + k * step) - 1 for k in range(steps)]
    elif table.endswith("leading"):
        found = [k * (TRAIN_TIMESTEPS // points) + offset for k in reversed(range(points))][:steps]
    else:
        found = [round(t) for t in evenly(points)][:steps]
    if len(set(found)) < steps or not 0 <= min(found) <= max(found) < TRAIN_TIMESTEPS:
        raise UsageError(f"{steps} steps are too many for the table {table!r} with an offset of {offset}")
    return found


def evenly(points: int) -> list[float]:
    """So many points from the last timestep to 0, as numpy's linspace: a single one is 0."""
    if points == 1:
        return [0.0]
    step = (TRAIN_TIMESTEPS - 1) / (points - 1)
    return [float(TRAIN_TIMESTEPS - 1), *(k * step for k in reversed(range(points - 1)))]


def _between(sigmas: tuple[float, ...], t: float) -> float:
    """The level of a timestep between two, by linear interpolation of sigma / alpha."""
    below = int(t)
    if t == below:
        return sigmas[below]
    low, high = (s / (1 - s) for s in sigmas[below : below + 2])
    ratio = low + (high - low) * (t - below)
    return ratio / (1 + ratio)


@cache
def _sigmas(name: str, beta_start: float, beta_end: float, zero_terminal_snr: bool) -> tuple[float, ...]:
    product, roots = 1.0, []
    for beta in _betas(name, beta_start, beta_end):
        product *= 1 - beta
        roots.append(math.sqrt(product))
    if zero_terminal_snr:
        first, last = roots[0], roots[-1]
        roots = [(root - last) * first / (first - last) for root in roots]
    ratios = [math.sqrt(1 - root**2) / root if root > 0 else math.inf for root in roots]
    return tuple(1.0 if ratio == math.inf else ratio / (1 + ratio) for ratio in ratios)


def _betas(name: str, start: float, end: float) -> Iterator[float]:
    for t in range(TRAIN_TIMESTEPS):
        part = t / (TRAIN_TIMESTEPS - 1)
        if name == "linear":
            yield start + (end - start) * part
        elif name == "scaled_linear":
            yield (math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * part) ** 2
        else:
            level, following = (_cosine(point / TRAIN_TIMESTEPS) for point in (t, t + 1))
            yield min(1 - following / level, 0.999)


def _cosine(part: float) -> float:
    """alpha^2 of Improved DDPM (arXiv 2102.09672, Eq. 17), but for a constant factor."""
    return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2
