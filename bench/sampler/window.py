"""A sampler that adds noise in some of its steps only: its coefficients are those of the ODE in all others."""

from dataclasses import dataclass
from functools import cached_property

from bench.sampler.rollout import Sampler
from bench.sampler.transitions import KERNELS, Coefficients


@dataclass(frozen=True)
class Windowed(Sampler):
    """A sampler that is deterministic outside the steps `noisy`."""

    noisy: tuple[int, ...] = ()
    """Indices of the steps that keep the kernel's coefficients."""

    @cached_property
    def coefficients(self) -> list[Coefficients]:
        """The coefficients of every step. Raises UsageError for an eta outside the kernel's range."""
        kernel = self.kernel.coefficients(self.schedule, self.eta)
        deterministic = KERNELS["ode"].coefficients(self.schedule, 0.0)
        return [at if k in self.noisy else deterministic[k] for k, at in enumerate(kernel)]
