"""Sigma schedules with the timestep shift of diffusers' FlowMatchEulerDiscreteScheduler."""

from dataclasses import dataclass

from bench.errors import UsageError, unknown

TABLES = {
    "diffusers": "as set_timesteps(N): N points down to the already shifted minimum, shifted again, then 0",
    "once": "as set_timesteps(sigmas=linspace(1, 1/N, N)): shifted once, then 0",
}
TRAIN_TIMESTEPS = 1000
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Schedule:
    """Noise levels from 1 (noise) to 0 (image): `sigmas` holds steps + 1 values, strictly decreasing."""

    sigmas: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def h(self, k: int) -> float:
        """Step length sigma_k - sigma_{k+1} > 0."""
        return self.sigmas[k] - self.sigmas[k + 1]


def shifted(sigma: float, shift: float) -> float:
    """shift sigma / (1 + (shift - 1) sigma), the resolution shift of SD3 (arXiv 2403.03206, Eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def make_schedule(steps: int, shift: float = 3.0, table: str = "diffusers") -> Schedule:
    """The schedule that diffusers' scheduler would use for `steps` steps.

    `table` names one of two conventions in use (see TABLES): released SD3 code that calls `set_timesteps(N)` shifts
    the table twice (huggingface/diffusers#13243). Raises UsageError for steps or a shift that give no such table, or
    an unknown table.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"steps must be at least 1 and at most {MOST_STEPS}, got {steps}")
    if not 0 < shift < float("inf"):
        raise UsageError(f"shift must be positive and finite, got {shift}")
    if table not in TABLES:
        raise unknown("sigma table", table, TABLES)
    last = shifted(1 / TRAIN_TIMESTEPS, shift) if table == "diffusers" else 1 / steps
    raw = [1.0] if steps == 1 else [1 + (last - 1) * k / (steps - 1) for k in range(steps)]
    schedule = Schedule((*(shifted(s, shift) for s in raw), 0.0))
    if any(schedule.h(k) <= 0 for k in range(steps)):
        raise UsageError(f"{steps} steps at a shift of {shift:g} are too short to tell their sigmas apart")
    return schedule
