"""Transition kernels as coefficients: every kernel here has mean = a x + b v (+ d x0_prev) and std = c.

Convention: x_sigma = (1 - sigma) x0 + sigma eps, and the velocity is v = eps - x0; s is the current sigma, n < s the
next one, and h = s - n. Then x0_hat = x - s v and eps_hat = x + (1 - s) v, so a step is defined by a few scalars.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

from bench.errors import UsageError, unknown
from bench.sampler.schedule import Schedule


@dataclass(frozen=True)
class Coefficients:
    """mean = a x + b v + d x0_prev, std = c; x0_prev is the previous step's x0_hat (multistep solvers only)."""

    a: float
    b: float
    c: float
    d: float = 0.0


@dataclass(frozen=True)
class Kernel:
    """A named family of transitions."""

    name: str
    step: Callable[[Schedule, int, float], Coefficients]
    """(schedule, step k, eta) -> Coefficients."""
    eta_max: float
    """Largest valid eta; 0 for a deterministic solver."""
    source: str
    """Method and paper."""
    code_omits_sqrt_h: bool = False
    """Whether released code omits sqrt(h) from this kernel's std in its KL, which is then h times the true KL."""

    def coefficients(self, schedule: Schedule, eta: float) -> list[Coefficients]:
        """The Coefficients of every step. Raises UsageError for an eta outside the kernel's range."""
        if not 0 <= eta < math.inf:
            raise UsageError(f"sampler.eta must be finite and at least 0, got {eta}")
        if eta > self.eta_max:
            raise UsageError(f"sampler.eta must be at most {self.eta_max:g} for kernel {self.name!r}, got {eta:g}")
        steps = [self.step(schedule, k, eta) for k in range(schedule.steps)]
        if schedule.end != 1:
            steps[-1] = Coefficients(*(schedule.end * part for part in astuple(steps[-1])))
        return steps


def _affine(x0_part: float, eps_part: float, s: float, c: float) -> Coefficients:
    """Coefficients of mean = x0_part x0_hat + eps_part eps_hat, std = c."""
    return Coefficients(x0_part + eps_part, eps_part * (1 - s) - s * x0_part, c)


def ode(schedule: Schedule, k: int, eta: float) -> Coefficients:
    """Euler: x' = x - h v. On this path equal to DDIM at eta 0 and to first-order DPM-Solver++."""
    return Coefficients(1.0, -schedule.h(k), 0.0)


def _sde(s: float, h: float, diffusion: float) -> Coefficients:
    """Euler-Maruyama on the reverse SDE with diffusion g: x' = x - h v - h g^2/(2 s) eps_hat + g sqrt(h) z."""
    pull = diffusion**2 * h / (2 * s)
    return Coefficients(1 - pull, -h - pull * (1 - s), diffusion * math.sqrt(h))


def flow_sde(schedule: Schedule, k: int, eta: float) -> Coefficients:
    """Flow-GRPO (arXiv 2505.05470, Eq. 9): g = eta sqrt(s / (1 - s)); at s = 1 the denominator is 1 - sigmas[1]."""
    s = schedule.sigmas[k]
    # g diverges at s = 1; the released code uses the next sigma in the denominator there.
    denominator = 1 - (s if s < 1 else schedule.sigmas[1])
    return _sde(s, schedule.h(k), eta * math.sqrt(s / denominator))


def dance_sde(schedule: Schedule, k: int, eta: float) -> Coefficients:
    """DanceGRPO (arXiv 2505.07818): constant diffusion coefficient g = eta."""
    return _sde(schedule.sigmas[k], schedule.h(k), eta)


def ddim(schedule: Schedule, k: int, eta: float) -> Coefficients:
    """DDIM with eta (arXiv 2010.02502) on the flow path: the noise level of the next state is exactly n."""
    s, n = schedule.sigmas[k], schedule.sigmas[k + 1]
    # Correlation of the noise in the two states along the forward path.
    forward = n * (1 - s) / (s * (1 - n))
    c = eta * n * math.sqrt(1 - forward**2)
    return _affine(1 - n, math.sqrt(n * n - c * c), s, c)


def cps(schedule: Schedule, k: int, eta: float) -> Coefficients:
    """Coefficient-preserving sampling (arXiv 2509.05952): splits n into n cos(eta pi / 2) and n sin(eta pi / 2)."""
    s, n = schedule.sigmas[k], schedule.sigmas[k + 1]
    angle = eta * math.pi / 2
    return _affine(1 - n, n * math.cos(angle), s, n * math.sin(angle))


def _log_snr(sigma: float) -> float:
    """Half the log of the signal-to-noise ratio: log(alpha / sigma), as in DPM-Solver."""
    return math.log((1 - sigma) / sigma)


def dpm2(schedule: Schedule, k: int, eta: float) -> Coefficients:
    """DPM-Solver++ 2M (arXiv 2211.01095, Alg. 2) on the flow path; the first and last steps are first order."""
    s, n = schedule.sigmas[k], schedule.sigmas[k + 1]
    # The log-SNR is infinite at sigma 1 and 0, so steps that touch either are first order.
    if k == 0 or n == 0 or schedule.sigmas[k - 1] == 1:
        return ode(schedule, k, eta)
    step = _log_snr(n) - _log_snr(s)
    previous = _log_snr(s) - _log_snr(schedule.sigmas[k - 1])
    shrink = (1 - n) * math.expm1(-step)
    extra = step / (2 * previous)
    return Coefficients(n / s - shrink * (1 + extra), s * shrink * (1 + extra), 0.0, shrink * extra)


LARGEST_ETA = 100.0
"""Bound of eta for kernels that have no natural one; published noise levels are below 2."""
KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("ode", ode, 0.0, "Euler, as FlowMatchEulerDiscreteScheduler"),
        Kernel("flow_sde", flow_sde, LARGEST_ETA, "Flow-GRPO, arXiv 2505.05470", code_omits_sqrt_h=True),
        Kernel("dance_sde", dance_sde, LARGEST_ETA, "DanceGRPO, arXiv 2505.07818"),
        Kernel("ddim", ddim, 1.0, "DDIM, arXiv 2010.02502, on the flow path"),
        Kernel("cps", cps, 1.0, "Flow-CPS, arXiv 2509.05952"),
        Kernel("dpm2", dpm2, 0.0, "DPM-Solver++ 2M, arXiv 2211.01095"),
    )
}
"""The registered kernels by name."""


def get_kernel(name: str) -> Kernel:
    """The kernel of a name. Raises UsageError with the nearest valid name."""
    if name not in KERNELS:
        raise unknown("kernel", name, KERNELS)
    return KERNELS[name]
