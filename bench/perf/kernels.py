"""Times of the sampler's step and loss kernels: eager PyTorch and Triton, relative to the copy bandwidth."""

from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from bench.perf.timing import measure
from bench.sampler.gaussian import Transition
from bench.sampler.schedule import make_schedule
from bench.sampler.step import guided, step
from bench.sampler.transitions import KERNELS

LATENT = (16, 64, 64)
"""Latent shape of SD3.5 at 512 pixels: channels, height, width."""
BATCHES = {"cpu": (24,), "cuda": (24, 64, 256)}
"""Batch sizes to measure, by type of device."""
GUIDANCE = 4.5
Work = Callable[[], object]


def available(device: torch.device) -> bool:
    """Whether Triton kernels can be timed on a device; on a CPU they run in an interpreter, which is only for tests."""
    return device.type == "cuda" and find_spec("triton") is not None


def table(device: torch.device, bandwidth: float, known: Collection[tuple[str, int, str]] = ()) -> Iterator[dict]:
    """One row per batch size, precision and operation, but for those in `known` (operation, batch size, type).

    `bandwidth` is the copy bandwidth in bytes per second.
    """
    for batch in BATCHES[device.type]:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = [torch.randn(batch, *LATENT, device=device).to(dtype) for _ in range(5)]
            for name, (passes, eager, triton) in operations(inputs, available(device)).items():
                moved, kind = passes * inputs[0].nbytes, str(dtype).removeprefix("torch.")
                if (name, batch, kind) in known:
                    continue
                row = {"operation": name, "batch": batch, "dtype": kind, "bytes": moved}
                for engine, work in (("eager", eager), ("triton", triton)):
                    if work:
                        timing = measure(work, device)
                        share = moved / timing.seconds / bandwidth
                        row[engine] = timing.record() | {"share_of_bandwidth": share}
                yield row


def operations(inputs: list[Tensor], with_triton: bool) -> dict[str, tuple[int, Work, Work | None]]:
    """Operation -> (number of tensors that it must at least read and write, eager version, Triton version or None).

    `inputs` are five tensors BCHW: state, conditional and unconditional velocity, noise, and target.
    """
    x, cond, uncond, noise, target = inputs
    at = KERNELS["flow_sde"].coefficients(make_schedule(10), 0.7)[4]
    trained = [t.clone().requires_grad_() for t in (cond, uncond)]

    def eager_step() -> None:
        with torch.no_grad():
            step(x, cond, at, v_uncond=uncond, guidance=GUIDANCE, noise=noise)

    def eager_draw() -> None:
        with torch.no_grad():
            step(x, cond, at, v_uncond=uncond, guidance=GUIDANCE, noise=torch.randn_like(x))

    def backward(loss_B: Tensor) -> None:
        torch.autograd.grad(loss_B.sum(), trained)

    def eager_density() -> None:
        v = guided(trained[0].float(), trained[1].float(), GUIDANCE)
        backward(Transition(x.float(), v, at).log_prob(target.float()))

    def eager_match() -> None:
        v = guided(trained[0].float(), trained[1].float(), GUIDANCE)
        error = v - target.float()
        backward(error.square().flatten(1).mean(1))

    triton: dict[str, Work] = {}
    if with_triton:
        from bench.sampler.triton_step import fused_log_prob, fused_match, fused_step

        triton = {
            "step, noise read": lambda: fused_step(x, cond, at, v_uncond=uncond, guidance=GUIDANCE, noise=noise),
            "step, noise drawn": lambda: fused_step(x, cond, at, v_uncond=uncond, guidance=GUIDANCE, seed=1),
            "log-probability and gradient": lambda: backward(
                fused_log_prob(x, trained[0], target, at, trained[1], GUIDANCE)
            ),
            "analytic loss and gradient": lambda: backward(
                fused_match(trained[0], target, 1.0, v_uncond=trained[1], guidance=GUIDANCE)
            ),
        }
    eager = {
        "step, noise read": (5, eager_step),
        "step, noise drawn": (4, eager_draw),
        "log-probability and gradient": (10, eager_density),
        "analytic loss and gradient": (8, eager_match),
    }
    found: dict[str, tuple[int, Work, Work | None]] = {}
    for name, (passes, work) in eager.items():
        found[name] = (passes, work, triton.get(name))
    return found
