"""Sigma schedules with the timestep shift of diffusers' FlowMatchEulerDiscreteScheduler."""

from dataclasses import dataclass

from bench.errors import UsageError, unknown

TABLES = {
    "diffusers": "as set_timesteps(N): N points down to the shifted minimum, shifted a second time, then 0",
    "once": "as set_timesteps(sigmas=linspace(1, 1/N, N)): shifted once, then 0",
    "dpm": "as DPMSolverMultistepScheduler with flow sigmas: N + 1 points from 0.999 to 0, shifted once",
}
"""The conventions for a table of a flow-matching model's sigmas, and what each computes."""
TRAIN_TIMESTEPS = 1000
"""Number of timesteps that diffusers' schedulers of flow-matching models are defined on."""
MOST_STEPS = 100_000
"""Maximum number of steps of a schedule made in code; settings allow at most TRAIN_TIMESTEPS."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels from noise to image: `sigmas` has steps + 1 values, strictly decreasing, of flow models 1 to 0."""

    sigmas: tuple[float, ...]
    start: float = 1.0
    """The first state is standard normal noise times this number."""
    end: float = 1.0
    """The image's latents are the last state times this number, by which the last step multiplies its result."""

    @property
    def steps(self) -> int:
        """Number of sampling steps."""
        return len(self.sigmas) - 1

    def h(self, k: int) -> float:
        """Length of step k: sigma_k - sigma_{k+1} > 0."""
        return self.sigmas[k] - self.sigmas[k + 1]

    def after(self, k: int) -> "Schedule":
        """The schedule that goes on from the state at step k."""
        return Schedule(self.sigmas[k:], end=self.end)


def shifted(sigma: float, shift: float) -> float:
    """shift sigma / (1 + (shift - 1) sigma), the resolution shift of SD3 (arXiv 2403.03206, Eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def make_schedule(
    steps: int, shift: float = 3.0, table: str = "diffusers", shift_terminal: float | None = None
) -> Schedule:
    """The schedule that diffusers' scheduler uses for `steps` steps.

    `table` names one of the conventions in use (TABLES): released SD3 code calls `set_timesteps(N)`, which applies
    the shift twice (huggingface/diffusers#13243). With `shift_terminal`, 1 - sigma is then stretched so that the last
    sigma before 0 is this value. Raises UsageError for an unknown table, and for steps or a shift
    that are out of range or make neighbouring sigmas equal.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"steps must be at least 1 and at most {MOST_STEPS}, got {steps}")
    if not 0 < shift < float("inf"):
        raise UsageError(f"shift must be positive and finite, got {shift}")
    if table not in TABLES:
        raise unknown("sigma table", table, TABLES)
    if table == "dpm":
        raw = [(1 - 1 / TRAIN_TIMESTEPS) * (1 - k / steps) for k in range(steps)]
    else:
        last = shifted(1 / TRAIN_TIMESTEPS, shift) if table == "diffusers" else 1 / steps
        raw = [1 + (last - 1) * k / (steps - 1) for k in range(steps)] if steps > 1 else [1.0]
    sigmas = [shifted(sigma, shift) for sigma in raw]
    if shift_terminal:
        if steps == 1:
            raise UsageError("a schedule that ends at shift_terminal needs at least two steps")
        stretch = (1 - sigmas[-1]) / (1 - shift_terminal)
        sigmas = [1 - (1 - sigma) / stretch for sigma in sigmas]
    schedule = Schedule((*sigmas, 0.0))
    if any(schedule.h(k) <= 0 for k in range(steps)):
        raise UsageError(f"{steps} steps at a shift of {shift:g} are too many: neighbouring sigmas are equal")
    return schedule
