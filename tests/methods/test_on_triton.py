"""Methods take the GPU's kernels where there is a GPU: on it, or in Triton's interpreter, against the torch path."""

import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.micro import descriptor
from bench.registry import find
from bench.sampler import backend
from bench.sampler.gaussian import Gaussian
from bench.sampler.rollout import rollout
from methods.opd_analytic import OpdAnalytic, OpdOptions
from methods.opd_ppo import OpdPpo, OpdPpoOptions
from methods.rl.method import RlOptions
from tests.methods.conftest import shake

triton_step = pytest.importorskip("bench.sampler.triton_step", reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Triton itself takes no tensors of the CPU; its interpreter, which tests/conftest.py asks for without a GPU, does."""
CALLS = ("fused_step", "fused_log_prob", "fused_match")


@pytest.fixture(autouse=True)
def hidden_gpu() -> None:
    """It is not hidden here (tests/conftest.py)."""


@pytest.fixture
def micro():
    """As in tests/conftest.py, where the kernels can take its tensors."""
    return descriptor().load(DEVICE)


@pytest.fixture
def on_triton(monkeypatch):
    """on_triton() -> how often each kernel is called from then on; before that the torch path runs, on a GPU too."""
    monkeypatch.setattr(backend, "on_gpu", lambda x: False)

    def switch() -> dict[str, int]:
        calls = dict.fromkeys(CALLS, 0)
        monkeypatch.setattr(backend, "on_gpu", lambda x: x.dtype in (torch.float32, torch.bfloat16, torch.float16))
        for name in CALLS:
            real = getattr(triton_step, name)

            def counted(*args, name=name, real=real, **kwargs):
                calls[name] += 1
                return real(*args, **kwargs)

            monkeypatch.setattr(triton_step, name, counted)
        return calls

    return switch


@pytest.mark.parametrize(("kernel", "eta"), [("ode", 0.0), ("dpm2", 0.0), ("flow_sde", 0.7), ("cps", 0.8)])
def test_a_rollout(make_lab, on_triton, kernel: str, eta: float) -> None:
    lab = make_lab(kernel, eta)
    conditioning = lab.encode(lab.prompts("ocr", 3))
    noise = lab.backbone.noise(3, lab.generator("noise"))

    def sample():
        return rollout(lab.velocity(conditioning, STUDENT), noise, lab.sampler, lab.generator("kernel"), keep=True)

    wanted = sample()
    calls = on_triton()
    found = sample()
    assert calls == {"fused_step": lab.sampler.steps, "fused_log_prob": 0, "fused_match": 0}
    for mine, theirs in zip(found.states, wanted.states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found.log_probs, wanted.log_probs, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-3)


def rl(engine: str):
    cls = find("method", "single_task")
    settings = {"clip": 1e-4, "kl": 0.04} if engine == "grpo" else {"clip": 2e-6}
    return cls(RlOptions(engine=engine, groups=2, group_size=3, **{engine: settings}))


METHODS = {
    "opd_analytic": lambda: OpdAnalytic(OpdOptions(trajectories=4, weighting="kl", anchor=0.1)),
    "opd_analytic plain": lambda: OpdAnalytic(OpdOptions(trajectories=4, execution="plain")),
    "opd_ppo": lambda: OpdPpo(OpdPpoOptions(trajectories=4)),
    "opd_ppo state_kl": lambda: OpdPpo(OpdPpoOptions(trajectories=4, advantage="state_kl")),
    "grpo": lambda: rl("grpo"),
    "grpo_guard": lambda: rl("grpo_guard"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_same_gradient(make_lab, gradient, on_triton, name: str) -> None:
    lab = make_lab("flow_sde", 0.7)
    lab.tasks = {"ocr": lab.tasks["ocr"]}
    shake(lab.backbone, STUDENT, 0.02)
    loss, wanted = gradient(lab, METHODS[name](), "ocr")
    calls = on_triton()
    again, found = gradient(lab, METHODS[name](), "ocr")
    assert calls["fused_step"]
    assert calls["fused_match" if name.startswith("opd_analytic") else "fused_log_prob"]
    assert again == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert wanted.norm() > 0
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_what_the_kernels_cannot_do_goes_to_torch(on_triton) -> None:
    """Doubles, and a gradient to the state that a density is taken at."""
    calls = on_triton()
    mean, drawn = torch.randn(2, 2, 3, 4, 4, device=DEVICE)
    Gaussian(mean.double(), 0.5).log_prob(drawn.double())
    drawn.requires_grad_()
    Gaussian(mean, 0.5).log_prob(drawn).sum().backward()
    torch.testing.assert_close(drawn.grad, -(drawn.detach() - mean) / 0.25)
    assert not any(calls.values())
