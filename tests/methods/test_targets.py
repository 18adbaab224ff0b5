"""What the student is matched to, against direct computations from the networks' own velocities."""

import pytest
import torch

from bench.api.lab import STUDENT
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.probes.estimates import ProbeLab
from bench.registry import find
from bench.sampler.levels import FlowLevels
from methods.dance_opd import DanceOpd, DanceOptions
from methods.off_policy import OffPolicy, OffPolicyOptions
from methods.opd_analytic import OpdAnalytic, OpdOptions
from methods.opd_ppo import OpdPpo, OpdPpoOptions
from methods.targets import Field, TargetOptions, error, student_field, target_field
from tests.methods.conftest import TASKS

SCALES = {"geneval": 1.5, "ocr": 3.0}
VARIANTS = {
    "extrapolation": {"extrapolation": 0.5},
    "branches": {"matching": "branches"},
    "difference": {"matching": "difference"},
    "all": {"teachers": "all"},
    "everything": {"teachers": "all", "weights": {"ocr": 3}, "matching": "difference", "extrapolation": 0.5},
    "self_normalise": {"self_normalise": True},
}
GUIDED = ("opd_ppo", "sft")
"""Methods that match the guided velocity only."""
KERNELS = {"opd_ppo": ["sampler.kernel=cps", "sampler.eta=0.8"]}


@pytest.fixture
def scene(make_lab):
    """(lab with guidance 2 and two teachers' scales, conditioning, x): what a velocity needs."""
    lab = make_lab(guidance=2.0)
    lab.teacher_guidance = dict(SCALES)
    conditioning = lab.encode(lab.prompts("ocr", 3))
    return lab, conditioning, lab.backbone.noise(3, torch.Generator().manual_seed(1))


def parts(scene, adapter: str | None, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """v_c and v_u of an adapter, each from network calls without guidance."""
    lab, conditioning, x = scene
    empty = lab.backbone.encode([""] * len(x))
    return tuple(lab.backbone.velocity(x, sigma, c, adapter, 1.0) for c in (conditioning, empty))


def by_hand(scene, task: str, sigma: float, options: TargetOptions, weights: dict[str, float]) -> list[torch.Tensor]:
    """The target, written out: every teacher extrapolated, then their weighted mean."""
    lab, _, _ = scene
    asked = TASKS if options.teachers == "all" else (task,)
    total, mean = sum(weights.get(name, 1) for name in asked), []
    base_c, base_u = parts(scene, None, sigma)
    for name in asked:
        v_c, v_u = parts(scene, lab.teachers[name], sigma)
        w = SCALES[name]
        of = {
            "guided": lambda c, u, w=w: [u + w * (c - u)],
            "branches": lambda c, u: [c, u],
            "difference": lambda c, u: [c, c - u],
        }[options.matching]
        pairs = zip(of(v_c, v_u), of(base_c, base_u))
        found = [(1 + options.extrapolation) * v - options.extrapolation * base for v, base in pairs]
        mean.append([weights.get(name, 1) / total * v for v in found])
    return [sum(terms) for terms in zip(*mean)]


@torch.no_grad()
@pytest.mark.parametrize("teachers", ["own", "all"])
@pytest.mark.parametrize("matching", ["guided", "branches", "difference"])
@pytest.mark.parametrize("extrapolation", [0.0, 0.5])
def test_a_target_is_what_its_formula_says(scene, teachers: str, matching: str, extrapolation: float) -> None:
    lab, conditioning, x = scene
    options = TargetOptions(teachers=teachers, matching=matching, extrapolation=extrapolation)
    field = target_field(lab, "ocr", conditioning, options, {"geneval": 3.0})
    v = field(x, 0.7)
    expected = by_hand(scene, "ocr", 0.7, options, {"geneval": 3.0})
    assert len(field.outputs) == len(expected)
    for found, wanted in zip(field.outputs, expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    if matching == "guided":
        assert v is field.outputs[0]
    else:  # rollouts follow the same mean at the scale of the task's own teacher
        branches = TargetOptions(teachers=teachers, matching="branches", extrapolation=extrapolation)
        v_c, v_u = by_hand(scene, "ocr", 0.7, branches, {"geneval": 3.0})
        torch.testing.assert_close(v, v_u + SCALES["ocr"] * (v_c - v_u), rtol=1e-4, atol=5e-5)


@torch.no_grad()
@pytest.mark.parametrize("matching", ["guided", "branches", "difference"])
def test_the_student_rolls_out_as_it_is_sampled(scene, matching: str) -> None:
    lab, conditioning, x = scene
    field = student_field(lab, conditioning, matching)
    torch.testing.assert_close(field(x, 0.7), lab.velocity(conditioning, STUDENT)(x, 0.7), rtol=1e-4, atol=1e-5)


def test_the_guided_sum_hides_errors_that_the_parts_show() -> None:
    """Errors with w e_c + (1 - w) e_u = 0 at w = 3: e_c = 2, e_u = 3."""
    target = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    e_c, e_u = target + 2, target + 3
    fields = {
        name: Field(lambda x, sigma, made=made: made, name, 3.0)
        for name, made in {"branches": (e_c, e_u), "difference": (e_c, e_c - e_u)}.items()
    }
    assert all(not field(target, 0.5).any() for field in fields.values())
    assert error((fields["branches"](target, 0.5),), (target,), 1.0).item() == 0
    assert error(fields["branches"].outputs, (target, target), 1.0).item() == 4 + 9
    assert error(fields["difference"].outputs, (target, target), 1.0).item() == 4 + 1


def test_self_normalised_error_in_its_space() -> None:
    """MSE(d) / (mean |d| + eps) for d = sigma (v - t), the error of the predicted image; its divisor has no gradient."""
    v = torch.tensor([[1.0, -3.0], [0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    target, sigma = torch.zeros(2, 2, dtype=torch.float64), 0.6
    loss = error((v,), (target,), sigma**2, self_normalise=True)
    d = sigma * v
    expected = d.square().mean(1) / (d.detach().abs().mean(1) + 1e-8)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    mine, theirs = (torch.autograd.grad(e.sum(), v, retain_graph=True)[0] for e in (loss, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    assert error((target,), (target,), 1.0, self_normalise=True).tolist() == [0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_and_plain_give_the_same_gradient(make_lab, gradient, variant: str) -> None:
    lab = make_lab("cps", 0.8, 2.5, steps=4)
    lab.teacher_guidance = dict(SCALES)
    shared = {"trajectories": 3, "weighting": "x0", "anchor": 0.1, **VARIANTS[variant]}
    found = [
        gradient(lab, OpdAnalytic(OpdOptions(**shared, execution=execution, chunk=2)), "ocr")
        for execution in ("plain", "fused")
    ]
    (loss, plain), (again, fused) = found
    assert plain.norm() > 0
    assert (fused - plain).norm() < 5e-5 * plain.norm()  # 1.9e-5 with AVX-512, less elsewhere
    assert again == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_has_its_own_gradient(make_lab, gradient, variant: str) -> None:
    """None of the settings is ignored by a method that accepts it."""
    options = VARIANTS[variant]
    methods = [(OpdAnalytic, OpdOptions), (OffPolicy, OffPolicyOptions)]
    if variant != "self_normalise":
        methods.append((DanceOpd, DanceOptions))
    if "matching" not in options and variant != "self_normalise":
        methods.append((OpdPpo, OpdPpoOptions))
    lab = make_lab("cps", 0.8, 2.0, steps=3)
    lab.teacher_guidance = dict(SCALES)
    for cls, settings in methods:
        _, plain = gradient(lab, cls(settings(trajectories=2)), "ocr")
        _, varied = gradient(lab, cls(settings(trajectories=2, **options)), "ocr")
        assert torch.nn.functional.cosine_similarity(plain, varied, dim=0) < 0.9999, cls.name


@pytest.mark.parametrize("variant", ["branches", "difference"])
def test_a_student_without_error_learns_nothing(make_lab, gradient, variant: str) -> None:
    """Whatever the teacher's own scale: the parts have none."""
    lab = make_lab("ode", 0.0, 2.0, steps=3)
    lab.teachers["ocr"], lab.teacher_guidance["ocr"] = STUDENT, 5.0
    loss, grad = gradient(lab, OpdAnalytic(OpdOptions(trajectories=2, **VARIANTS[variant])), "ocr")
    assert loss == 0 and not grad.any()


COSTS = [
    (name, variant)
    for name in ("opd_analytic", "opd_ppo", "sft", "dance_opd", "off_policy")
    for variant, settings in VARIANTS.items()
    if not ("matching" in settings and name in GUIDED) and variant != "self_normalise"
]


@pytest.mark.parametrize(("name", "variant"), COSTS)
def test_cost_is_as_predicted(make_lab, gradient, name: str, variant: str) -> None:
    settings = VARIANTS[variant]
    overrides = ["params.trajectories=2", "params.batches=mixed", "sampler.steps=3", "sampler.guidance=2"]
    overrides += [f"teacher_guidance.{TASKS[0]}=1", f"teacher_guidance.{TASKS[1]}=2", "params.anchor=0.1"]
    overrides += [f"params.{key}={value}" for key, value in settings.items() if key != "weights"]
    spec = resolve(name, list(TASKS), overrides=overrides + KERNELS.get(name, []), teachers="folder")
    lab = make_lab(spec.sampler.kernel, spec.sampler.eta, 2.0, steps=3)
    lab.sampler, lab.teacher_guidance = spec.sampler.build(FlowLevels(3.0)), spec.teacher_guidance
    cls = find("method", name)
    method = cls(cls.Options.model_validate(spec.params))
    lab.backbone.meter.nfe.clear()
    for task in TASKS:
        gradient(lab, method, task)
    assert sum(lab.backbone.meter.nfe.values()) == cls.predict(spec, lab.sampler)


def test_the_probe_at_one_noise_level_sees_the_parts(make_lab, gradient) -> None:
    """Gradients at single levels sum to the whole gradient, in both executions."""
    lab = make_lab("ode", 0.0, 2.0, steps=3)
    method = OpdAnalytic(OpdOptions(trajectories=2, matching="difference", weighting="velocity"))
    whole, split = ProbeLab.of(lab), ProbeLab.of(lab)
    _, wanted = gradient(whole, method, "ocr")
    total = torch.zeros_like(wanted)
    for split.sigma in lab.sampler.schedule.sigmas[:2]:
        _, part = gradient(split, method, "ocr")
        assert part.norm() > 0
        total += part
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-7)


def test_what_does_not_apply_is_refused() -> None:
    for name in GUIDED:
        with pytest.raises(UsageError, match=r"params\.matching branches .* needs the guided velocity"):
            resolve(name, ["ocr"], overrides=["params.matching=branches", "sampler.guidance=2"])
    with pytest.raises(UsageError, match=r"set sampler\.guidance to another scale"):
        resolve("opd_analytic", ["ocr"], overrides=["params.matching=difference"])
    with pytest.raises(UsageError, match=r"params\.teachers all .* the run has one"):
        resolve("opd_analytic", ["ocr"], overrides=["params.teachers=all"])


def test_the_defaults_leave_runs_their_names() -> None:
    written = resolve("opd_analytic", ["ocr", "geneval"]).record()["params"]
    assert not {"extrapolation", "matching", "teachers", "self_normalise", "allocation"} & written.keys()
