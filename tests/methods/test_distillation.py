"""The other distillation methods: what they cost, where they vanish, what merging preserves."""

import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.registry import find
from methods.dance_opd import DanceOpd, DanceOptions
from methods.merge import Merge, MergeOptions
from methods.off_policy import OffPolicy, OffPolicyOptions
from methods.opd_analytic import OpdAnalytic, OpdOptions
from methods.sft import Sft, SftOptions
from tests.methods.conftest import TASKS, shake

PAIRS = [(OffPolicy, OffPolicyOptions), (OpdAnalytic, OpdOptions)]
KERNELS = {"opd_ppo": ["sampler.kernel=cps", "sampler.eta=0.8"]}


@pytest.mark.parametrize(("anchor", "guidance"), [(0.0, 1.0), (0.1, 1.0), (0.1, 2.0)])
@pytest.mark.parametrize("name", ["opd_analytic", "opd_ppo", "sft", "dance_opd", "off_policy"])
def test_cost_is_as_predicted(make_lab, gradient, name: str, anchor: float, guidance: float) -> None:
    guided = [f"sampler.guidance={guidance}", *(f"teacher_guidance.{task}={guidance}" for task in TASKS)]
    overrides = ["params.trajectories=4", f"params.anchor={anchor}", "params.batches=mixed", "sampler.steps=6"]
    spec = resolve(name, list(TASKS), overrides=overrides + guided + KERNELS.get(name, []), teachers="folder")
    lab = make_lab(spec.sampler.kernel, spec.sampler.eta, guidance)
    cls = find("method", name)
    method = cls(cls.Options.model_validate(spec.params))
    lab.backbone.meter.nfe.clear()
    for task in TASKS:
        _, grad = gradient(lab, method, task)
        assert grad.norm() > 0
    assert sum(lab.backbone.meter.nfe.values()) == cls.predict(spec, lab.sampler)


@pytest.mark.parametrize(
    "method",
    [
        DanceOpd(DanceOptions(trajectories=4)),
        OpdAnalytic(OpdOptions(trajectories=4)),
        OffPolicy(OffPolicyOptions(trajectories=4)),
    ],
)
def test_nothing_to_learn_from_oneself(make_lab, gradient, method) -> None:
    lab = make_lab()
    lab.teachers["ocr"] = STUDENT
    loss, grad = gradient(lab, method, "ocr")
    assert loss == 0
    assert not grad.any()


def test_off_policy_is_on_policy_where_student_and_teacher_visit_the_same_states(make_lab, gradient) -> None:
    """One step from the same noise: the two losses are one; with more steps the states, hence the losses, part."""
    lab = make_lab()
    one = {"trajectories": 4, "timestep_fraction": 1 / lab.sampler.steps + 1e-9}
    same = [gradient(lab, m, "ocr") for m in (OffPolicy(OffPolicyOptions(**one)), OpdAnalytic(OpdOptions(**one)))]
    assert torch.allclose(same[0][1], same[1][1], rtol=1e-5, atol=1e-9)
    both = [gradient(lab, m(o(trajectories=4)), "ocr")[0] for m, o in PAIRS]
    assert both[0] != pytest.approx(both[1], rel=1e-3)


def test_the_anchor_pulls_to_the_base(make_lab, gradient) -> None:
    lab = make_lab()
    lab.teachers["ocr"] = STUDENT
    loss, grad = gradient(lab, OpdAnalytic(OpdOptions(trajectories=4, anchor=0.5)), "ocr")
    assert loss > 0
    flat = torch.cat([p.flatten() for p in lab.backbone.adapters.parameters(STUDENT)])
    assert grad @ flat > 0  # descending shrinks the change from the base


def test_imitation_looks_at_the_teachers_pictures(make_lab, gradient) -> None:
    lab = make_lab()
    first, _ = gradient(lab, Sft(SftOptions(trajectories=4)), "ocr")
    shake(lab.backbone, "teacher-ocr", 0.1)
    second, _ = gradient(lab, Sft(SftOptions(trajectories=4)), "ocr")
    assert first != second


def test_alternating_batches_visit_one_teacher_an_update(make_lab) -> None:
    lab = make_lab()
    method = OpdAnalytic(OpdOptions(batches="alternate"))
    seen = []
    for lab.step in range(4):
        seen += method.plan(lab).items()
    assert seen == [("geneval", 1.0), ("ocr", 1.0), ("geneval", 1.0), ("ocr", 1.0)]


def merged_velocity(lab, rank: int, **options) -> tuple[torch.Tensor, float]:
    adapters = lab.backbone.adapters
    for parameter in adapters.parameters(STUDENT):
        parameter.requires_grad_(False)
    adapters.add("wide", Shape(rank, 2.0 * rank))
    method = Merge(MergeOptions(**options))
    merged = {
        layer: sum(adapters.deltas(t)[layer] for t in lab.teachers.values())
        * (0.5 if method.options.rule == "average" else 1)
        for layer in adapters.deltas("teacher-ocr")
    }
    kept = adapters.set_deltas("wide", merged)
    found = adapters.deltas("wide")
    return max(float((found[layer] - merged[layer]).norm() / merged[layer].norm()) for layer in merged), kept


def test_merging_is_exact_where_the_rank_allows_and_says_what_it_lost(make_lab) -> None:
    lab = make_lab()
    error, kept = merged_velocity(lab, rank=8)
    assert error < 1e-5
    assert kept == pytest.approx(1)
    lab.backbone.adapters.add("narrow", Shape(2, 4.0))
    kept = lab.backbone.adapters.set_deltas("narrow", lab.backbone.adapters.deltas("wide"))
    assert 0.2 < kept < 0.9


def test_merging_one_teacher_is_that_teacher(make_lab) -> None:
    lab = make_lab()
    lab.teachers = {"ocr": "teacher-ocr"}
    with torch.no_grad():
        Merge(MergeOptions()).prepare(lab)
    cond = lab.encode(lab.prompts("ocr", 3))
    x = lab.backbone.noise(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            lab.velocity(cond, STUDENT)(x, 0.6), lab.velocity(cond, "teacher-ocr")(x, 0.6), rtol=1e-3, atol=1e-4
        )


def test_a_cold_start_is_the_mean_of_the_teachers(make_lab) -> None:
    lab = make_lab()
    with torch.no_grad():
        OpdAnalytic(OpdOptions()).prepare(lab)
        untouched = lab.backbone.adapters.deltas(STUDENT)
        OpdAnalytic(OpdOptions(start="merge")).prepare(lab)
        started = lab.backbone.adapters.deltas(STUDENT)
        Merge(MergeOptions(rule="average")).prepare(lab)
    merged = lab.backbone.adapters.deltas(STUDENT)
    for layer in merged:
        assert torch.equal(started[layer], merged[layer])
        assert not torch.equal(started[layer], untouched[layer])


def test_a_fraction_that_trains_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="trains no step"):
        resolve("sft", ["ocr"], overrides=["params.timestep_fraction=0.01"])
