"""The Triton kernels against the torch reference in float64, in Triton's interpreter on the CPU (on a GPU where one is).

Every transition, with and without guidance, both precisions, shapes that end inside a block; outputs lie between poison.
"""

import pytest
import torch
from torch import Tensor

from bench.sampler.gaussian import Transition
from bench.sampler.schedule import make_schedule
from bench.sampler.step import guided, step
from bench.sampler.transitions import KERNELS, Coefficients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
fused = pytest.importorskip("bench.sampler.triton_step", reason="triton is not installed")

ETA = {"ode": 0.0, "dpm2": 0.0, "flow_sde": 0.7, "dance_sde": 0.3, "ddim": 0.6, "cps": 0.8}
SHAPES = [(3, 16, 8, 8), (2, 3, 7, 5), (1, 1, 1, 1), (2, 5, 21, 13)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
GUARD = 4096


def tensors(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Inputs with poison on both sides: reading past an end shows."""
    generator = torch.Generator().manual_seed(hash(shape) % 1000)
    found = []
    for _ in range(count):
        size = torch.Size(shape).numel()
        wide = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
        wide[GUARD : GUARD + size] = torch.randn(size, generator=generator).to(dtype)
        found.append(wide.to(DEVICE)[GUARD : GUARD + size].view(shape))
    return found


@pytest.fixture(autouse=True)
def hidden_gpu() -> None:
    """It is not hidden here (tests/conftest.py)."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Outputs are allocated as NaN between NaN; afterwards the surroundings must be untouched."""
    made: list[tuple[Tensor, int]] = []

    def empty(*shape, dtype=torch.float32, device=None) -> Tensor:
        shape = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        wide = torch.full((shape.numel() + 2 * GUARD,), float("nan"), dtype=dtype, device=device)
        made.append((wide, shape.numel()))
        return wide[GUARD : GUARD + shape.numel()].view(shape)

    monkeypatch.setattr(fused.torch, "empty", empty)
    monkeypatch.setattr(
        fused.torch, "empty_like", lambda x, dtype=None: empty(tuple(x.shape), dtype=dtype or x.dtype, device=x.device)
    )
    yield
    for wide, size in made:
        assert wide[:GUARD].isnan().all()
        assert wide[GUARD + size :].isnan().all()


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative norm of the difference; NaN where anything was left unwritten."""
    return float((found.double().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-12))


def wide(*given: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().double().cpu() for t in given]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("guidance", [None, 4.5])
@pytest.mark.parametrize("name", KERNELS)
def test_step_equals_the_reference(name: str, guidance: float | None, dtype: torch.dtype) -> None:
    schedule = make_schedule(10)
    for shape in SHAPES:
        x, cond, uncond, noise, previous = tensors(5, shape, dtype)
        uncond = None if guidance is None else uncond
        for k in (0, 4, 9):
            at = KERNELS[name].coefficients(schedule, ETA[name])[k]
            how = {"v_uncond": uncond, "guidance": guidance or 1.0, "noise": noise if at.c else None}
            how["x0_prev"] = previous if at.d else None
            following, velocity, log_prob = fused.fused_step(x, cond, at, **how)
            numbers = dict(zip(("v_uncond", "noise", "x0_prev"), wide(uncond, how["noise"], how["x0_prev"])))
            wanted = step(*wide(x, cond), at, guidance=how["guidance"], **numbers)
            assert following.dtype == dtype
            assert error(following, wanted.next) < TOLERANCE[dtype]
            assert error(velocity, wanted.velocity) < TOLERANCE[dtype]
            if at.c:
                assert error(log_prob, wanted.log_prob) < TOLERANCE[dtype]
            else:
                assert log_prob is None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("guidance", [None, 4.5])
@pytest.mark.parametrize("name", [name for name in KERNELS if ETA[name]])
def test_log_probability_and_its_gradient_equal_the_reference(name: str, guidance: float | None, dtype) -> None:
    at = KERNELS[name].coefficients(make_schedule(10), ETA[name])[4]
    for shape in SHAPES:
        x, cond, uncond, drawn = tensors(4, shape, dtype)
        upstream = torch.linspace(-1, 2, len(x), device=x.device)
        leaves = [cond.requires_grad_(), *([] if guidance is None else [uncond.requires_grad_()])]
        found = fused.fused_log_prob(x, cond, drawn, at, *leaves[1:], guidance=guidance or 1.0)
        gradients = torch.autograd.grad(found, leaves, upstream)
        doubles = [leaf.requires_grad_() for leaf in wide(*leaves)]
        velocity = guided(doubles[0], doubles[1] if guidance else None, guidance or 1.0)
        wanted = Transition(wide(x)[0], velocity, at).log_prob(wide(drawn)[0])
        assert error(found.detach(), wanted.detach()) < TOLERANCE[dtype]
        for mine, theirs in zip(gradients, torch.autograd.grad(wanted, doubles, upstream.double().cpu()), strict=True):
            assert mine.dtype == dtype
            assert error(mine, theirs) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("guidances", [(None, None), (4.5, None), (None, 2.0), (4.5, 4.5)])
def test_the_analytic_loss_and_its_gradient_equal_the_reference(guidances, dtype: torch.dtype) -> None:
    mine, theirs = guidances
    for shape in SHAPES:
        cond, uncond, target, target_uncond = tensors(4, shape, dtype)
        leaves = [cond.requires_grad_(), *([uncond.requires_grad_()] if mine else [])]
        found = fused.fused_match(
            cond, target, 0.37, v_uncond=uncond if mine else None, guidance=mine or 1.0,
            target_uncond=target_uncond if theirs else None, target_guidance=theirs or 1.0,
        )  # fmt: skip
        gradients = torch.autograd.grad(found.sum(), leaves)
        doubles = [leaf.requires_grad_() for leaf in wide(*leaves)]
        velocity = guided(doubles[0], doubles[1] if mine else None, mine or 1.0)
        goal = guided(wide(target)[0], wide(target_uncond)[0] if theirs else None, theirs or 1.0)
        wanted = 0.37 * (velocity - goal).square().flatten(1).mean(1)
        assert error(found.detach(), wanted.detach()) < TOLERANCE[dtype]
        for a, b in zip(gradients, torch.autograd.grad(wanted.sum(), doubles), strict=True):
            assert error(a, b) < TOLERANCE[dtype]


def test_drawn_noise_is_standard_normal_and_a_function_of_the_seed() -> None:
    at = Coefficients(0.9, -0.1, 0.5)
    x, v = tensors(2, (8, 16, 16, 16), torch.float32)
    draw = lambda seed: fused.fused_step(x, v, at, seed=seed)
    following, _, log_prob = draw(1)
    z = (following - (at.a * x + at.b * v)) / at.c
    assert abs(float(z.mean())) < 0.02
    assert float(z.std()) == pytest.approx(1, abs=0.02)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.15)
    assert error(log_prob, Transition(*wide(x, v), at).log_prob(wide(following)[0])) < 1e-5
    assert torch.equal(draw(1)[0], following)
    assert not torch.equal(draw(2)[0], following)
    assert len({round(float(value), 6) for value in z.flatten()[:4096]}) > 4000  # samples and blocks differ


def test_views_are_taken_as_they_look() -> None:
    at = KERNELS["cps"].coefficients(make_schedule(10), 0.8)[4]
    x, v, noise = (t.transpose(1, 3) for t in tensors(3, (2, 3, 7, 5), torch.float32))
    wanted = step(*wide(x, v), at, noise=wide(noise)[0])
    following, _, log_prob = fused.fused_step(x, v, at, noise=noise)
    assert error(following, wanted.next) < 1e-5
    assert error(log_prob, wanted.log_prob) < 1e-5


def test_what_is_missing_or_does_not_fit_is_refused() -> None:
    x, v = tensors(2, (2, 3, 4, 4), torch.float32)
    noisy, multistep = Coefficients(1, 1, 0.5), Coefficients(1, 1, 0, d=0.5)
    with pytest.raises(ValueError, match="either noise or a seed"):
        fused.fused_step(x, v, noisy)
    with pytest.raises(ValueError, match="either noise or a seed"):
        fused.fused_step(x, v, noisy, noise=x, seed=1)
    with pytest.raises(ValueError, match="needs x0_prev"):
        fused.fused_step(x, v, multistep)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 4\) on .*, got \(2, 3, 4, 2\) on"):
        fused.fused_step(x, v[..., :2], noisy, seed=1)
    with pytest.raises(ValueError, match="no log-probability"):
        fused.fused_log_prob(x, v, x, Coefficients(1, 1, 0))
