"""Triton kernels for a transition, its log-probability and its losses, each in a single pass over memory.

The torch code in step.py, gaussian.py and methods/ is the reference. In eager PyTorch, guidance, mean, noise and
density take a dozen kernels that each read and write every element. Here every input is read once and every output
written once, in float32. Sums over a sample are computed per block and then added, so that they do not depend on the
order in which blocks run. TRITON_INTERPRET=1 runs the kernels on the CPU.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.sampler.transitions import Coefficients

BLOCK = 1024
"""Number of elements per Triton program."""


@triton.jit
def _guided(cond, uncond, here, mask, guidance, GUIDED: tl.constexpr):
    """Guided velocity v_u + w (v_c - v_u) in float32, or v_c without an unconditional branch."""
    v = tl.load(cond + here, mask=mask, other=0.0).to(tl.float32)
    if GUIDED:
        u = tl.load(uncond + here, mask=mask, other=0.0).to(tl.float32)
        v = u + guidance * (v - u)
    return v


@triton.jit
def _place(size, BLOCK: tl.constexpr):
    """Offsets of this program's elements in a [B, size] tensor, and the mask of those that exist."""
    # In 64 bits: a large batch has more elements than 32-bit offsets can address.
    inner = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(1).to(tl.int64) * size + inner, inner < size


@triton.jit
def _store_squares(squares, values):
    """Store this program's sum of squares in its entry of [B, blocks]."""
    block = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(squares + block, tl.sum(values * values, 0))


@triton.jit
def _store_gradients(grad_cond, grad_uncond, slope, here, mask, guidance, GUIDED: tl.constexpr):
    """Store the gradients of both branches, given `slope`, the gradient of the guided velocity."""
    if GUIDED:
        tl.store(grad_cond + here, (guidance * slope).to(grad_cond.dtype.element_ty), mask=mask)
        tl.store(grad_uncond + here, ((1 - guidance) * slope).to(grad_uncond.dtype.element_ty), mask=mask)
    else:
        tl.store(grad_cond + here, slope.to(grad_cond.dtype.element_ty), mask=mask)


@triton.jit
def _normal(seed, BLOCK: tl.constexpr):
    """Standard normal numbers [BLOCK] of this program, which depend only on (seed, sample, position in the sample)."""
    # One call of Philox makes four numbers per counter, so a block needs a quarter as many counters as elements.
    QUARTER: tl.constexpr = BLOCK // 4
    place = (tl.program_id(0) * QUARTER + tl.arange(0, QUARTER)).to(tl.uint32)
    zero = place * 0
    i0, i1, i2, i3 = tl.philox(seed, place, zero + tl.program_id(1).to(tl.uint32), zero, zero)
    n0, n1 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(i0), tl.uint_to_uniform_float(i1))
    n2, n3 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(i2), tl.uint_to_uniform_float(i3))
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BLOCK])


@triton.jit
def _step_kernel(
    x, cond, uncond, noise, previous, following, velocity, squares, size, a, b, c, d, guidance, seed,
    GUIDED: tl.constexpr, READ: tl.constexpr, DRAW: tl.constexpr, MULTISTEP: tl.constexpr, KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One transition a x + b v + c z + d x0_prev, and the sum of z^2 per block for its log-density.

    READ takes the noise z from memory and DRAW generates it from `seed`. KEEP stores the guided velocity.
    """
    here, mask = _place(size, BLOCK)
    v = _guided(cond, uncond, here, mask, guidance, GUIDED)
    if KEEP:
        tl.store(velocity + here, v, mask=mask)
    taken = a * tl.load(x + here, mask=mask, other=0.0).to(tl.float32) + b * v
    if MULTISTEP:
        taken += d * tl.load(previous + here, mask=mask, other=0.0).to(tl.float32)
    if READ:
        z = tl.load(noise + here, mask=mask, other=0.0).to(tl.float32)
    if DRAW:
        # Elements beyond the sample must not count in the sum of squares.
        z = tl.where(mask, _normal(seed, BLOCK), 0.0)
    if READ or DRAW:
        taken += c * z
        _store_squares(squares, z)
    tl.store(following + here, taken.to(following.dtype.element_ty), mask=mask)


@triton.jit
def _density_kernel(
    x, cond, uncond, drawn, squares, size, a, b, guidance, GUIDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The sum per block of (drawn - mean)^2, from which the log-density follows."""
    here, mask = _place(size, BLOCK)
    mean = a * tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
    mean += b * _guided(cond, uncond, here, mask, guidance, GUIDED)
    gap = tl.load(drawn + here, mask=mask, other=0.0).to(tl.float32) - mean
    _store_squares(squares, gap)


@triton.jit
def _density_backward_kernel(
    x, cond, uncond, drawn, upstream, grad_cond, grad_uncond, size, a, b, scale, guidance,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both branches from d log p / d v = b (drawn - mean) / c^2; `scale` is b / c^2."""
    here, mask = _place(size, BLOCK)
    mean = a * tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
    mean += b * _guided(cond, uncond, here, mask, guidance, GUIDED)
    gap = tl.load(drawn + here, mask=mask, other=0.0).to(tl.float32) - mean
    slope = tl.load(upstream + tl.program_id(1)) * scale * gap
    _store_gradients(grad_cond, grad_uncond, slope, here, mask, guidance, GUIDED)


@triton.jit
def _match_kernel(
    cond, uncond, target_cond, target_uncond, squares, size, guidance, target_guidance,
    GUIDED: tl.constexpr, TARGET_GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum per block of (v - target)^2, both guided."""
    here, mask = _place(size, BLOCK)
    gap = _guided(cond, uncond, here, mask, guidance, GUIDED)
    gap -= _guided(target_cond, target_uncond, here, mask, target_guidance, TARGET_GUIDED)
    _store_squares(squares, gap)


@triton.jit
def _match_backward_kernel(
    cond, uncond, target_cond, target_uncond, upstream, grad_cond, grad_uncond, size, scale, guidance, target_guidance,
    GUIDED: tl.constexpr, TARGET_GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both branches from d/dv of weight / size * sum (v - target)^2; `scale` is 2 weight / size."""
    here, mask = _place(size, BLOCK)
    gap = _guided(cond, uncond, here, mask, guidance, GUIDED)
    gap -= _guided(target_cond, target_uncond, here, mask, target_guidance, TARGET_GUIDED)
    slope = tl.load(upstream + tl.program_id(1)) * scale * gap
    _store_gradients(grad_cond, grad_uncond, slope, here, mask, guidance, GUIDED)


def fused_step(
    x: Tensor,
    v_cond: Tensor,
    at: Coefficients,
    *,
    v_uncond: Tensor | None = None,
    guidance: float = 1.0,
    noise: Tensor | None = None,
    seed: int | None = None,
    x0_prev: Tensor | None = None,
    keep_velocity: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One transition: (next [B, ...] in x's type, guided velocity in float32 or None, log-density [B] or None).

    The counterpart of `step.step` without gradients. The velocity is None unless kept, and the log-density is None for
    a deterministic transition. A stochastic transition uses `noise`, or draws noise from `seed` with Philox: the same
    on every GPU, but different from torch's. Raises ValueError for tensors of different shapes or devices, and if the
    noise or the x0_prev that the coefficients need is missing.
    """
    stochastic = at.c != 0
    if stochastic and (noise is None) == (seed is None):
        raise ValueError("a stochastic transition takes either noise or a seed")
    if at.d and x0_prev is None:
        raise ValueError("a multistep transition needs x0_prev")
    x, v_cond, v_uncond = x.contiguous(), _like(x, v_cond), _like(x, v_uncond)
    noise, x0_prev = _like(x, noise), _like(x, x0_prev)
    following = torch.empty_like(x)
    # Without guidance the velocity is v_cond itself, which the kernel need not write again.
    combined = keep_velocity and v_uncond is not None
    velocity = None
    if combined:
        velocity = torch.empty_like(x, dtype=torch.float32)
    elif keep_velocity:
        velocity = v_cond.float()
    grid, size = _grid(x)
    squares = torch.empty(grid[::-1], dtype=torch.float32, device=x.device)
    with _on(x):
        _step_kernel[grid](
            x, v_cond, _or(v_uncond, x), _or(noise, x), _or(x0_prev, x), following, _or(velocity, x), squares, size,
            at.a, at.b, at.c, at.d, guidance, seed or 0, GUIDED=v_uncond is not None,
            READ=stochastic and noise is not None, DRAW=stochastic and noise is None, MULTISTEP=at.d != 0,
            KEEP=combined, BLOCK=BLOCK,
        )  # fmt: skip
    if not stochastic:
        return following, velocity, None
    # In units of c the deviation from the mean is the noise itself.
    log_prob = -0.5 * squares.sum(1) - size * (math.log(at.c) + 0.5 * math.log(2 * math.pi))
    return following, velocity, log_prob


class _LogProb(torch.autograd.Function):
    """Log-density [B] of `drawn`, differentiable with respect to the velocities only."""

    @staticmethod
    def forward(ctx, x, v_cond, v_uncond, drawn, a, b, c, guidance) -> Tensor:
        grid, size = _grid(x)
        squares = torch.empty(grid[::-1], dtype=torch.float32, device=x.device)
        guided = v_uncond is not None
        with _on(x):
            _density_kernel[grid](
                x, v_cond, _or(v_uncond, x), drawn, squares, size, a, b, guidance, GUIDED=guided, BLOCK=BLOCK
            )
        ctx.save_for_backward(x, v_cond, v_uncond, drawn)
        ctx.numbers = (a, b, c, guidance)
        return -squares.sum(1) / (2 * c**2) - size * (math.log(c) + 0.5 * math.log(2 * math.pi))

    @staticmethod
    def backward(ctx, upstream_B: Tensor):
        x, v_cond, v_uncond, drawn = ctx.saved_tensors
        a, b, c, guidance = ctx.numbers
        grad_cond = torch.empty_like(v_cond)
        grad_uncond = None if v_uncond is None else torch.empty_like(v_uncond)
        grid, size = _grid(x)
        with _on(x):
            _density_backward_kernel[grid](
                x, v_cond, _or(v_uncond, x), drawn, upstream_B.float().contiguous(), grad_cond, _or(grad_uncond, x),
                size, a, b, b / c**2, guidance, GUIDED=v_uncond is not None, BLOCK=BLOCK,
            )  # fmt: skip
        return None, grad_cond, grad_uncond, None, None, None, None, None


def fused_log_prob(
    x: Tensor, v_cond: Tensor, drawn: Tensor, at: Coefficients, v_uncond: Tensor | None = None, guidance: float = 1.0
) -> Tensor:
    """Log-density [B] of a transition from x to the state `drawn`, both [B, ...], with gradients to the velocities.

    It is the policy term of a PPO-style loss (arXiv 2505.05470, Eq. 5; arXiv 2605.08063). Raises ValueError for a
    deterministic transition.
    """
    if not at.c:
        raise ValueError("a deterministic transition has no log-probability")
    x, v_cond, v_uncond = x.contiguous(), _like(x, v_cond), _like(x, v_uncond)
    drawn = _like(x, drawn)
    return _LogProb.apply(x, v_cond, v_uncond, drawn, at.a, at.b, at.c, guidance)


class _Match(torch.autograd.Function):
    """weight * mean of (v - target)^2, [B], differentiable with respect to the student's velocities only."""

    @staticmethod
    def forward(ctx, v_cond, v_uncond, target_cond, target_uncond, guidance, target_guidance, weight) -> Tensor:
        grid, size = _grid(v_cond)
        squares = torch.empty(grid[::-1], dtype=torch.float32, device=v_cond.device)
        with _on(v_cond):
            _match_kernel[grid](
                v_cond, _or(v_uncond, v_cond), target_cond, _or(target_uncond, v_cond), squares, size, guidance,
                target_guidance, GUIDED=v_uncond is not None, TARGET_GUIDED=target_uncond is not None, BLOCK=BLOCK,
            )  # fmt: skip
        ctx.save_for_backward(v_cond, v_uncond, target_cond, target_uncond)
        ctx.numbers = (guidance, target_guidance, weight)
        return squares.sum(1) * (weight / size)

    @staticmethod
    def backward(ctx, upstream_B: Tensor):
        v_cond, v_uncond, target_cond, target_uncond = ctx.saved_tensors
        guidance, target_guidance, weight = ctx.numbers
        grad_cond = torch.empty_like(v_cond)
        grad_uncond = None if v_uncond is None else torch.empty_like(v_uncond)
        grid, size = _grid(v_cond)
        with _on(v_cond):
            _match_backward_kernel[grid](
                v_cond, _or(v_uncond, v_cond), target_cond, _or(target_uncond, v_cond), upstream_B.float().contiguous(),
                grad_cond, _or(grad_uncond, v_cond), size, 2 * weight / size, guidance, target_guidance,
                GUIDED=v_uncond is not None, TARGET_GUIDED=target_uncond is not None, BLOCK=BLOCK,
            )  # fmt: skip
        return grad_cond, grad_uncond, None, None, None, None, None


def fused_match(
    v_cond: Tensor,
    target_cond: Tensor,
    weight: float,
    *,
    v_uncond: Tensor | None = None,
    guidance: float = 1.0,
    target_uncond: Tensor | None = None,
    target_guidance: float = 1.0,
) -> Tensor:
    """weight * mean over elements of (v - target)^2, [B]: the analytic loss of one step, with gradients to the student.

    DiffusionOPD (arXiv 2605.15055, Eq. 11-12); `weight` comes from weighting.py. Guidance is applied to both the
    student and the target. All velocities are [B, ...]. Raises ValueError if their shapes or devices differ.
    """
    v_cond, v_uncond, target_cond = v_cond.contiguous(), _like(v_cond, v_uncond), _like(v_cond, target_cond)
    target_uncond = _like(v_cond, target_uncond)
    return _Match.apply(v_cond, v_uncond, target_cond, target_uncond, guidance, target_guidance, weight)


def _on(x: Tensor) -> AbstractContextManager:
    """A context that makes x's GPU the current one, because Triton launches on the current GPU wherever the data is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _grid(x: Tensor) -> tuple[tuple[int, int], int]:
    """The grid of programs (blocks per sample, samples), and the number of elements per sample."""
    size = math.prod(x.shape[1:])
    return (triton.cdiv(size, BLOCK), len(x)), size


@overload
def _like(first: Tensor, other: Tensor) -> Tensor: ...


@overload
def _like(first: Tensor, other: None) -> None: ...


def _like(first: Tensor, other: Tensor | None) -> Tensor | None:
    """`other` in contiguous memory. Raises ValueError unless it has the shape and device of `first`."""
    if other is not None and (other.shape != first.shape or other.device != first.device):
        expected = f"{tuple(first.shape)} on {first.device}"
        raise ValueError(f"expected a tensor of shape {expected}, got {tuple(other.shape)} on {other.device}")
    return None if other is None else other.contiguous()


def _or(tensor: Tensor | None, placeholder: Tensor) -> Tensor:
    """The tensor or, without one, a valid pointer for an argument that the compiled kernel never reads."""
    return placeholder if tensor is None else tensor
