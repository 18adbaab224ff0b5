"""The step kernel in Triton: a transition, its log-probability and its losses in one pass over memory each.

The torch code in step.py, gaussian.py and methods/ is the reference. In eager PyTorch guidance, mean, noise and density
are a dozen kernels that each read and write every element; here every input is read once and every output written
once, arithmetic is float32, and sums over a sample are made block by block and then added up, so that they do not
depend on the order in which blocks run. TRITON_INTERPRET=1 runs all of it on the CPU.
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
"""Elements of one program."""


@triton.jit
def _guided(cond, uncond, here, mask, guidance, GUIDED: tl.constexpr):
    """v_u + w (v_c - v_u) in float32; v_c alone without a second branch."""
    v = tl.load(cond + here, mask=mask, other=0.0).to(tl.float32)
    if GUIDED:
        u = tl.load(uncond + here, mask=mask, other=0.0).to(tl.float32)
        v = u + guidance * (v - u)
    return v


@triton.jit
def _place(size, BLOCK: tl.constexpr):
    """Offsets of this program's elements in a [B, size] tensor, in 64 bits, and which of them exist."""
    inner = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(1).to(tl.int64) * size + inner, inner < size


@triton.jit
def _store_squares(squares, values):
    """This program's sum of squares at its place in [B, blocks]."""
    block = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(squares + block, tl.sum(values * values, 0))


@triton.jit
def _store_gradients(grad_cond, grad_uncond, slope, here, mask, guidance, GUIDED: tl.constexpr):
    """The gradient of the guided velocity, shared out to its branches."""
    if GUIDED:
        tl.store(grad_cond + here, (guidance * slope).to(grad_cond.dtype.element_ty), mask=mask)
        tl.store(grad_uncond + here, ((1 - guidance) * slope).to(grad_uncond.dtype.element_ty), mask=mask)
    else:
        tl.store(grad_cond + here, slope.to(grad_cond.dtype.element_ty), mask=mask)


@triton.jit
def _normal(seed, BLOCK: tl.constexpr):
    """Standard normal numbers [BLOCK] of this program, a function of (seed, sample, place in it) alone.

    Philox's counter is a quarter of the place and the sample's number: one call makes four numbers, all of them used.
    """
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
        z = tl.where(mask, _normal(seed, BLOCK), 0.0)
    if READ or DRAW:
        taken += c * z
        _store_squares(squares, z)
    tl.store(following + here, taken.to(following.dtype.element_ty), mask=mask)


@triton.jit
def _density_kernel(
    x, cond, uncond, drawn, squares, size, a, b, guidance, GUIDED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
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
    """d log p / d v = b (y - mean) / c^2, shared out by guidance; `scale` is b / c^2."""
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
    here, mask = _place(size, BLOCK)
    gap = _guided(cond, uncond, here, mask, guidance, GUIDED)
    gap -= _guided(target_cond, target_uncond, here, mask, target_guidance, TARGET_GUIDED)
    _store_squares(squares, gap)


@triton.jit
def _match_backward_kernel(
    cond, uncond, target_cond, target_uncond, upstream, grad_cond, grad_uncond, size, scale, guidance, target_guidance,
    GUIDED: tl.constexpr, TARGET_GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
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
    """(next [B, ...] in x's type, guided velocity float32, log-density [B] or None) of one transition.

    As `step.step` without gradients; a velocity that is not kept comes back as None. A stochastic transition reads
    `noise`, or draws its own from `seed` (Philox; the same on every GPU, another stream than torch's). Raises
    ValueError for tensors of different shapes or without the noise or x0_prev that the coefficients need.
    """
    stochastic = at.c != 0
    if stochastic and (noise is None) == (seed is None):
        raise ValueError("a stochastic transition takes either noise or a seed")
    if at.d and x0_prev is None:
        raise ValueError("a multistep transition needs x0_prev")
    x, v_cond, v_uncond = x.contiguous(), _like(x, v_cond), _like(x, v_uncond)
    noise, x0_prev = _like(x, noise), _like(x, x0_prev)
    following = torch.empty_like(x)
    combined = keep_velocity and v_uncond is not None
    velocity = torch.empty_like(x, dtype=torch.float32) if combined else v_cond.float() if keep_velocity else None
    grid, size = _grid(x)
    squares = torch.empty(grid[::-1], dtype=torch.float32, device=x.device)
    with _on(x):
        _step_kernel[grid](
            x, v_cond, _or(v_uncond, x), _or(noise, x), _or(x0_prev, x), following, _or(velocity, x), squares, size,
            at.a, at.b, at.c, at.d, guidance, seed or 0, GUIDED=v_uncond is not None,
            READ=stochastic and noise is not None, DRAW=stochastic and noise is None, MULTISTEP=at.d != 0,
            KEEP=combined, BLOCK=BLOCK,
        )  # fmt: skip
    log_prob = -0.5 * squares.sum(1) - size * (math.log(at.c) + 0.5 * math.log(2 * math.pi)) if stochastic else None
    return following, velocity, log_prob


class _LogProb(torch.autograd.Function):
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
    """Log-density [B] of the state `drawn` [B, ...] from x, with gradients to the velocities: the policy's part of a
    PPO-style loss (arXiv 2505.05470, Eq. 5; arXiv 2605.08063). Raises ValueError for a transition without noise."""
    if not at.c:
        raise ValueError("a deterministic transition has no log-probability")
    x, v_cond, v_uncond = x.contiguous(), _like(x, v_cond), _like(x, v_uncond)
    drawn = _like(x, drawn)
    return _LogProb.apply(x, v_cond, v_uncond, drawn, at.a, at.b, at.c, guidance)


class _Match(torch.autograd.Function):
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

    DiffusionOPD (arXiv 2605.15055, Eq. 11-12); `weight` from weighting.py. Both velocities are guided on the way.
    """
    v_cond, v_uncond, target_cond = v_cond.contiguous(), _like(v_cond, v_uncond), _like(v_cond, target_cond)
    target_uncond = _like(v_cond, target_uncond)
    return _Match.apply(v_cond, v_uncond, target_cond, target_uncond, guidance, target_guidance, weight)


def _on(x: Tensor) -> AbstractContextManager:
    """For a launch: Triton launches on the current GPU, wherever the tensors are; that of x is made the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _grid(x: Tensor) -> tuple[tuple[int, int], int]:
    """Programs (blocks of a sample, samples) and elements of a sample."""
    size = math.prod(x.shape[1:])
    return (triton.cdiv(size, BLOCK), len(x)), size


@overload
def _like(first: Tensor, other: Tensor) -> Tensor: ...


@overload
def _like(first: Tensor, other: None) -> None: ...


def _like(first: Tensor, other: Tensor | None) -> Tensor | None:
    """The other one, contiguous. Raises ValueError unless it has the first one's shape and device."""
    if other is not None and (other.shape != first.shape or other.device != first.device):
        raise ValueError(f"{tuple(other.shape)} on {other.device} is not {tuple(first.shape)} on {first.device}")
    return None if other is None else other.contiguous()


def _or(tensor: Tensor | None, placeholder: Tensor) -> Tensor:
    """A pointer is needed even where the kernel, as compiled, never looks."""
    return placeholder if tensor is None else tensor
