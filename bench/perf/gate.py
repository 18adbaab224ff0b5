"""What must be right before it is timed: noise, kernels and an update on this device, against float64 or the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.api.lab import STUDENT
from bench.backbones.flow import FlowBackbone
from bench.config.compute import Compute
from bench.config.resolve import describe
from bench.errors import BenchError
from bench.perf import updates
from bench.sampler.gaussian import Transition
from bench.sampler.noise import noise
from bench.sampler.schedule import make_schedule
from bench.sampler.step import guided, step
from bench.sampler.transitions import KERNELS, Coefficients

LATENTS = (3, 16, 24, 20)
"""Shape of the checked latents; their number of elements is no multiple of a kernel's block."""
GUIDANCE = 4.5
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Largest error allowed in each type, relative to the largest value of the result."""
UPDATE = 2e-4
"""Largest relative difference between the gradients of one update on two devices or by two ways."""
TEXTS = ["a photo of a red ring", "a photo of two circles"]


def gate(device: torch.device) -> list[dict]:
    """Check everything; one row per check with its relative error. Raises BenchError for an error that is too large."""
    rows = [_noise(device)]
    for name, kernel in KERNELS.items():
        at = kernel.coefficients(make_schedule(10), min(0.7, kernel.eta_max))[4]
        rows += [_step(name, at, dtype, device) for dtype in ROUNDING]
        if at.c:
            rows.append(_density(name, at, device))
    rows.append(_update(device))
    for row in rows:
        if not row["error"] <= row["limit"]:  # also true for NaN
            raise BenchError(
                f"{row['check']} is wrong on {device}: relative error {row['error']:.2g}, allowed {row['limit']:.2g}; "
                "nothing was timed"
            )
    return rows


def _row(check: str, found: Tensor, expected: Tensor, limit: float) -> dict:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    error = float((found - expected).abs().max() / expected.abs().max())
    return {"check": check, "error": error, "limit": limit}


def _inputs(dtype: torch.dtype) -> list[Tensor]:
    """State, conditional and unconditional velocity, and noise; the same for every device."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(LATENTS, generator=generator).to(dtype) for _ in range(4)]


def _noise(device: torch.device) -> dict:
    """The noise of this device against the CPU's."""
    here, there = (noise(2**40 + 7, range(5, 8), LATENTS[1:], where) for where in (device, "cpu"))
    return _row("noise", here, there, ROUNDING[torch.float32])


def _step(name: str, at: Coefficients, dtype: torch.dtype, device: torch.device) -> dict:
    """A guided step on this device against float64 on the CPU, from the same inputs."""

    def taken(place: Callable[[Tensor], Tensor]) -> Tensor:
        x, cond, uncond, drawn = (place(tensor) for tensor in _inputs(dtype))
        previous = drawn if at.d else None
        with torch.no_grad():
            return step(x, cond, at, v_uncond=uncond, guidance=GUIDANCE, noise=drawn, x0_prev=previous).next

    found, expected = taken(lambda t: t.to(device)), taken(lambda t: t.double())
    return _row(f"step of {name} in {str(dtype).removeprefix('torch.')}", found, expected, ROUNDING[dtype])


def _density(name: str, at: Coefficients, device: torch.device) -> dict:
    """The gradient of a step's log-density on this device against float64 on the CPU."""

    def gradient(place: Callable[[Tensor], Tensor]) -> Tensor:
        x, cond, uncond, drawn = (place(tensor) for tensor in _inputs(torch.float32))
        trained = cond.requires_grad_()
        density = Transition(x, guided(trained, uncond, GUIDANCE), at).log_prob(drawn)
        return torch.autograd.grad(density.sum(), trained)[0]

    found, expected = gradient(lambda t: t.to(device)), gradient(lambda t: t.double())
    return _row(f"gradient of the log-density of {name}", found, expected, 10 * ROUNDING[torch.float32])


def _update(device: torch.device) -> dict:
    """The gradient of a fused update on this device against the straightforward loop on the CPU, both in float32."""

    def gradient(where: str, variant: updates.UpdateVariant) -> Tensor:
        backbone: FlowBackbone = describe("micro").load(where, Compute())
        lab = updates.laboratory(backbone, TEXTS, 2.5)
        generator = torch.Generator().manual_seed(0)
        for name in (STUDENT, "teacher"):  # fresh adapters would not differ
            for parameter in backbone.adapters.parameters(name):
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator).to(where)
        updates.update(lab, variant)()
        return torch.cat([p.grad.flatten() for p in backbone.adapters.parameters(STUDENT) if p.grad is not None])

    ways = {variant.label: variant for variant in updates.variants(updates.TRAJECTORIES)}
    found, expected = gradient(str(device), ways["fused"]).cpu(), gradient("cpu", ways[updates.BASELINE])
    error = float((found - expected).norm() / expected.norm())
    return {"check": "gradient of an update", "error": error, "limit": UPDATE}
