import pytest
import torch

from bench.api.lab import STUDENT
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.sampler.gaussian import Transition
from bench.sampler.weighting import step_weights
from methods.opd_analytic import OpdAnalytic, OpdOptions

KERNELS = [("ode", 0.0), ("flow_sde", 0.7), ("cps", 0.8), ("dpm2", 0.0)]


def method(**options) -> OpdAnalytic:
    return OpdAnalytic(OpdOptions(trajectories=5, **options))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("kernel", "eta"), KERNELS)
@pytest.mark.parametrize(("guidance", "teacher"), [(1.0, {}), (2.5, {"ocr": 1.0})])
def test_fused_and_plain_give_the_same_gradient(make_lab, gradient, kernel, eta, guidance, teacher) -> None:
    lab = make_lab(kernel, eta, guidance)
    lab.teacher_guidance |= teacher
    options = {"weighting": "velocity"}
    loss_plain, plain = gradient(lab, method(execution="plain", chunk=7, **options), "ocr")
    loss_fused, fused = gradient(lab, method(execution="fused", **options), "ocr")
    assert plain.norm() > 0
    assert relative(fused, plain) < 1e-5
    assert loss_fused == pytest.approx(loss_plain, rel=1e-5)


def test_fused_saves_the_second_pass(make_lab, gradient) -> None:
    lab = make_lab()
    meter = lab.backbone.meter.nfe
    counts = {}
    for execution in ("plain", "fused"):
        meter.clear()
        gradient(lab, method(execution=execution), "ocr")
        counts[execution] = sum(meter.values())
        spec = resolve(
            "opd_analytic",
            ["ocr"],
            overrides=["sampler.steps=6", f"params.execution={execution}", "params.trajectories=5"],
        )
        assert counts[execution] == OpdAnalytic.predict(spec, lab.sampler)
    assert counts == {"plain": 5 * (6 + 5 + 3 * 5), "fused": 5 * 5 * (3 + 1)}


@pytest.mark.parametrize("weighting", ["kl", "no_dt", "mean_matching", "velocity", "x0"])
def test_student_equal_to_teacher_gives_zero(make_lab, gradient, weighting) -> None:
    lab = make_lab("flow_sde", 0.7)
    lab.teachers["ocr"] = STUDENT
    loss, grad = gradient(lab, method(weighting=weighting), "ocr")
    assert loss == 0
    assert not grad.any()


def test_two_identical_teachers_equal_one(make_lab, gradient) -> None:
    lab = make_lab()
    opd = method()
    assert opd.plan(lab) == {"geneval": 0.5, "ocr": 0.5}
    lab.teachers["geneval"] = lab.teachers["ocr"]
    _, with_own = gradient(lab, opd, "ocr")
    lab.teachers["ocr"] = lab.teachers["geneval"]
    _, with_other = gradient(lab, opd, "ocr")
    torch.testing.assert_close(with_own, with_other, rtol=0, atol=0)
    # Round-robin over twins of one task is that task: weights sum to one.
    assert sum(opd.plan(lab).values()) * with_own.norm() == pytest.approx(float(with_own.norm()))


@pytest.mark.parametrize(("kernel", "eta"), [("flow_sde", 0.7), ("dance_sde", 0.3), ("ddim", 0.8), ("cps", 0.8)])
def test_kl_weighting_is_the_kl_of_the_transition(make_lab, kernel, eta) -> None:

    lab = make_lab(kernel, eta)
    weights = step_weights(lab.sampler, "kl")
    x, v, w = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    for weight, at in zip(weights, lab.sampler.coefficients):
        kl = Transition(x, v, at).kl(Transition(x, w, at))
        torch.testing.assert_close(weight * (v - w).square().flatten(1).sum(1), kl)


def test_published_weights_of_the_ten_step_table(make_lab) -> None:
    """Per-step weights of the default table at eta 0.7 (steps 0, 4 and 8), true KL and released code."""
    lab = make_lab("flow_sde", 0.7, steps=10)
    true, code = step_weights(lab.sampler, "kl"), step_weights(lab.sampler, "no_dt")
    assert [true[k] for k in (0, 4, 8)] == pytest.approx([0.0016, 0.0349, 1.105], rel=0.03)
    assert [code[k] for k in (0, 4, 8)] == pytest.approx([0.00006, 0.0029, 0.2974], rel=0.1)
    complete = make_lab("cps", 0.7, steps=10).sampler  # its std has no sqrt(h) to leave out
    assert step_weights(complete, "no_dt") == step_weights(complete, "kl")


def test_gradient_equals_finite_differences(make_lab, gradient) -> None:
    """At fixed states (one step): the analytic gradient along itself is the loss's slope."""
    lab = make_lab(steps=1)
    opd = method(timestep_fraction=1.0, weighting="velocity")
    parameters = lab.backbone.adapters.parameters(STUDENT)
    _, grad = gradient(lab, opd, "ocr")
    direction, size = grad / grad.norm(), 1e-2

    def moved(scale: float) -> float:
        with torch.no_grad():
            offset = 0
            for p in parameters:
                p.add_(scale * direction[offset : offset + p.numel()].view_as(p))
                offset += p.numel()
        return gradient(lab, opd, "ocr")[0]

    up = moved(size)
    down = moved(-2 * size)
    assert (up - down) / (2 * size) == pytest.approx(float(grad.norm()), rel=2e-2)


def test_fraction_that_trains_no_step_is_refused() -> None:
    with pytest.raises(UsageError, match="trains no step"):
        resolve("opd_analytic", ["ocr"], overrides=["sampler.steps=1"])
