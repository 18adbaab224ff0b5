"""What a dry run says of cost: against arithmetic by hand, and against what is honest to say."""

import re
from pathlib import Path

import pytest
import torch

from bench.api.method import Method, Options, Work
from bench.api.scores import parts_of
from bench.backbones.adapters import Shape
from bench.backbones.meter import BACKWARD, Passes
from bench.backbones.sd3.published import DEFAULT, VAE
from bench.cli.dryrun import explain
from bench.config.compute import Compute
from bench.config.resolve import describe, resolve
from bench.errors import UsageError
from bench.prediction.cost import PEAK, UTILISATION, Cost, held_out, held_out_evaluations, hours, of_passes, of_update
from bench.prediction.footprint import evaluation_memory, training_memory
from bench.registry import find
from bench.sampler.levels import FlowLevels
from tests.sd3_shapes import sd3_size, size


def said(capsys, *arguments, **named) -> str:
    """A dry run's lines about cost."""
    explain(resolve(*arguments, **named))
    return capsys.readouterr().out.partition("# predicted")[2]


def test_the_unit_of_budgets_is_a_convention_that_says_so(capsys) -> None:
    assert BACKWARD == 2
    assert Passes(3, 5).nfe == 3 + 5 * 3
    told = said(capsys, "opd_analytic", ["ocr"])
    assert "a backward pass 2 by convention" in told
    assert "hours" not in told  # nobody plans GPU-hours on micro


def test_operations_of_a_run_are_those_of_its_passes() -> None:
    """A preset by hand: forward passes and training passes of SD3.5-Medium, none of it recomputed."""
    spec = resolve(None, None, preset=Path("diffusionopd-sd35"))
    work = find("method", "opd_analytic").work(spec, spec.sampler.build(FlowLevels(3.0)))
    assert work.passes == Passes(forward=24 * 9 * (1 + 2 + 2), trained=24 * 9 * 2 * 3)
    medium = size(DEFAULT, spec.compute)
    found = of_update(work, medium, spec)
    assert found.decoder == 0
    assert found.model == pytest.approx(1080 * 2.224e12 + 1296 * 2.247e12 * 2.1212, rel=2e-3)


def test_hours_are_a_range_with_a_unit() -> None:
    assert UTILISATION["bfloat16"] == (0.2, 0.3)
    cost = Cost(model=PEAK["bfloat16"] * 3600 * 6)  # six hours of a GPU that never waits
    assert hours(cost, Compute(precision="bfloat16")) == "20 to 30 hours"
    assert hours(cost * 0.01, Compute(precision="bfloat16")) == "12 to 18 minutes"
    assert hours(Cost(decoder=PEAK["tf32"] * 3600 * 6), Compute(precision="float16")) == "20 to 30 hours"
    assert hours(Cost(), Compute()) == "0 to 0 minutes"


def test_fused_saves_a_fifth_to_a_third_of_the_operations_unless_it_has_to_recompute() -> None:
    """What the budget's unit calls 1.28 times: 1.37 in operations, and 1.03 where fused alone is checkpointed."""
    medium, student = size(DEFAULT, Compute(resolution=512)), Shape(32, 64.0)
    half, again = (
        Compute(resolution=512, precision="bfloat16", gradient_checkpointing=checkpointed)
        for checkpointed in (False, True)
    )
    plain, fused = Passes(forward=10 + 9, trained=9), Passes(forward=9, trained=9)
    cost = lambda passes, compute: of_passes(passes, medium, student, compute)
    assert plain.nfe / fused.nfe == pytest.approx(1.278, abs=1e-3)
    assert cost(plain, half) / cost(fused, half) == pytest.approx(1.36, abs=0.01)
    assert cost(plain, again) / cost(fused, again) == pytest.approx(1.27, abs=0.01)
    assert cost(plain, half) / cost(fused, again) == pytest.approx(1.03, abs=0.01)


@pytest.mark.parametrize(
    ("points", "updates", "times"), [([0.5, 1.0], 100, 2), ([], 100, 1), ([0, 1], 100, 1), ([0.25, 0.5, 1.0], 1, 1)]
)
def test_points_that_fall_into_one_update_are_one_evaluation(points, updates: int, times: int) -> None:
    spec = resolve("opd_analytic", ["ocr"], overrides=[f"evaluation.points={points}", f"budget.updates={updates}"])
    assert held_out_evaluations(spec, updates) == times


def test_held_out_evaluation_is_predicted_apart(sd3_folder: Path, capsys) -> None:
    """Points x pictures x steps x guidance; base and every teacher once; tasks whose prompts are elsewhere are named."""
    overrides = ["sampler.guidance=4.5", "params.chunk=4", "evaluation.steps=40"]
    told = said(
        capsys, "opd_analytic", ["geneval", "ocr"], teachers="train", backbone=str(sd3_folder), overrides=overrides
    )
    assert "held-out evaluation: 2 x (geneval 2,212) images of 40 steps, two passes each for guidance, and measures: " in told
    assert "evaluation of the base, teacher geneval, teacher ocr, once per results folder: " in told
    assert "held-out evaluation of ocr: not included, because its number of images is not known (task 'ocr' on photographs" in told
    assert "not in these hours: scoring" in told
    assert "the teacher of ocr is trained first if it does not exist yet: " in told
    assert re.search(r"training: .* [\d.]+ to [\d.]+ (minutes|hours)", told)
    assert held_out(resolve("opd_analytic", ["ocr"]), "micro") == {"ocr": 192}


def test_evaluation_costs_what_its_passes_cost() -> None:
    from bench.prediction.cost import of_evaluation

    spec = resolve(None, None, preset=Path("diffusionopd-sd35"))
    medium = size(DEFAULT, spec.compute)
    cost = of_evaluation(spec, medium, spec.sampler.build(FlowLevels(3.0)), {"geneval": 10, "ocr": 7}, {"geneval": 1.0, "ocr": 4.5})
    # Of each task, three further images of sixteen prompts, and the base's passes along sixteen paths.
    assert cost.model == pytest.approx((10 + 64 + (7 + 64) * 2) * 40 * medium.flops)
    assert cost.decoder == pytest.approx((17 + 2 * 48) * medium.decoding(1, spec.compute).forward)


METHODS = {
    "opd_analytic": [],
    "opd_ppo": ["sampler.kernel=cps", "sampler.eta=0.8"],
    "dance_opd": [],
    "off_policy": [],
    "sft": [],
    "merge": [],
    "multi_reward": ["params.groups=4", "params.group_size=6"],
    "cascade": ["params.groups=4", "params.group_size=6"],
    "opd_reward": ["params.groups=4", "params.group_size=6", "teacher_guidance.geneval=4.5", "sampler.guidance=4.5"],
    "self_opd": ["params.trajectories=4", "sampler.kernel=cps", "sampler.eta=0.8"],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_hours_and_memory(sd3_folder: Path, capsys, name: str) -> None:
    teachers = "train" if find("method", name).needs.teachers else None
    told = said(
        capsys, name, ["geneval"], teachers=teachers, backbone=str(sd3_folder),
        overrides=[*METHODS[name], "budget={nfe: 100000}"],
    )  # fmt: skip
    assert "predicted memory of one GPU, GB: throughout transformer" in told
    assert "not known" not in told
    if name == "merge":
        assert "no training, 0 NFE" in told
        assert "training: none; merge computes the student from its teachers" in told
        assert "activations" not in told
        return
    assert "updates in total" in told
    assert "parameters, " in told and "TFLOP per forward pass of one latent (1 NFE)" in told
    assert re.search(r"training: an update makes [\d,]+ passes without gradients and [\d,]+ with gradients", told)
    assert (", and decodes " in told) == find("method", name).needs.rewards
    assert re.search(r"training \(activations of \d+ latents", told)


def test_a_budget_in_seconds_is_its_own_prediction(sd3_folder: Path, capsys) -> None:
    told = said(capsys, "cascade", ["geneval"], backbone=str(sd3_folder), overrides=["budget={seconds: 3600}"])
    assert "training: ends after 3,600 seconds of training and scoring, as set by the budget" in told


class Deep(Options):
    part: int = 3


class Foreign(Method):
    """A method of another package, which says what it must and no more."""

    name, source = "foreign", "nowhere"

    class Options(Options):
        pictures: int = 7
        deep: Deep = Deep()

    @classmethod
    def predict(cls, spec, sampler) -> int:
        return 70

    def collect(self, lab, task):
        raise NotImplementedError

    def losses(self, lab, task, experience):
        raise NotImplementedError


def test_what_a_plug_in_does_not_say_is_not_known(sd3_folder: Path, capsys, monkeypatch) -> None:
    import bench.config.resolve as resolving
    from bench.cli import dryrun
    from bench.config import spec
    from bench.prediction import cost, footprint
    from bench.training import out_of_memory

    honest = find
    foreign = lambda kind, name: Foreign if name == "foreign" else honest(kind, name)
    for module in (cost, dryrun, footprint, resolving, spec, out_of_memory):
        monkeypatch.setattr(module, "find", foreign)
    told = said(capsys, "foreign", ["geneval"], backbone=str(sd3_folder))
    assert "of 0 latents" not in told
    assert "training (activations: its largest batch is not known) not known" in told
    assert re.search(r"GB: .* or more at most", told)
    assert re.search(
        r"training: between .* and .*; the method does not say how many of its passes have gradients", told
    )
    wanted = resolve("foreign", ["geneval"], backbone=str(sd3_folder))
    assert "params" not in str(out_of_memory.exhausted("training", wanted))
    # and what it says is taken, whatever its options are called
    work = classmethod(lambda cls, spec, sampler: Work(Passes(trained=5), trained_at_once=5))
    monkeypatch.setattr(Foreign, "work", work)
    monkeypatch.setattr(Foreign, "lowers_memory", ("pictures", "deep.part"))
    told = said(capsys, "foreign", ["geneval"], backbone=str(sd3_folder), overrides=["sampler.guidance=2"])
    assert "training (activations of 10 latents (estimate))" in told
    cures = str(out_of_memory.exhausted("training", wanted))
    assert "a lower params.pictures (now 7) below 5, a lower params.deep.part (now 3)" in cures


def test_memory_is_told_by_phase(capsys) -> None:
    """Flow-GRPO keeps states and velocities of 1,152 trajectories, and decodes as many pictures part by part."""
    told = said(capsys, None, None, preset=Path("flow-grpo-sd35-ocr"))
    latent, prompt = 4 * 16 * 64 * 64, 2 * (205 * 4096 + 2048)
    collected = 1152 * (21 * latent + prompt)
    assert f"(activations of 18 latents (estimate) and {collected / 1e9:.1f} of states, velocities and prompts)" in told
    assert "rollouts (128 latents at once)" in told  # compute.batch, twice for guidance
    assert "decoding (16 images at once)" in told
    assert "and 5.8e+18 FLOP of decoding" in told


def test_decoding_whole_sliced_and_tiled() -> None:
    medium = sd3_size({}, 64, 205, {}, VAE)
    whole, sliced, tiled = (medium.decoding(8, Compute(decode=how)) for how in ("whole", "sliced", "tiled"))
    assert whole.forward == 8 * sliced.forward == tiled.forward  # a tile of 1,024 pixels is a whole picture of 512
    assert whole.peak == pytest.approx(8 * sliced.peak, rel=0.02)
    assert sd3_size({}, 128 * 2, 205, {}, VAE).decoding(1, Compute(decode="tiled")).peak < 5 * sliced.peak
    assert medium.picture_bytes == 3 * 512 * 512 * 4
    assert sd3_size({}, 64, 205, {}).decoding(8, Compute()) is None


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_pictures_are_predicted_in_the_parts_in_which_they_are_decoded(resolution: int) -> None:
    overrides = [f"compute.resolution={resolution}", "compute.decode=whole", "evaluation.batch=96", "evaluation.guidance=1"]
    spec = resolve("single_task", ["geneval"], backbone="sd3", overrides=overrides)
    medium = size(DEFAULT, spec.compute)
    parts = [rows.stop - rows.start for rows in parts_of(torch.empty(96, 1, medium.latent_side, medium.latent_side))]
    (name,) = (name for name in training_memory(medium, spec, spec.sampler.build(FlowLevels(3.0))) if name.startswith("decoding"))
    assert name == f"decoding ({max(parts)} images at once)"
    (evaluation,) = evaluation_memory(medium, spec, spec.sampler.build(FlowLevels(3.0))).values()
    at_once = medium.decoding(max(parts), spec.compute).peak + 2 * max(parts) * medium.picture_bytes
    assert evaluation == max(at_once, medium.sampling(64, spec.compute).peak)


def test_text_encoders_that_come_back_to_encode_are_in_the_memory(capsys) -> None:
    small = ["params.nft.chunk=1", "compute.batch=1", "evaluation.batch=1", "params.groups=2", "params.group_size=2"]
    kept = said(capsys, "single_task", ["geneval"], backbone="sd3", overrides=small)
    moved = said(
        capsys, "single_task", ["geneval"], backbone="sd3", overrides=[*small, "compute.offload_text_encoders=true"]
    )
    assert "text encoders 11.2" in kept and "in addition encoding prompts" not in kept
    assert "text encoders 0.0" in moved and "in addition encoding prompts 11.2" in moved
    assert ": 18 at most (encoding prompts)" in moved
    assert all("encoded prompts up to 1.1" in told for told in (kept, moved))


@pytest.mark.parametrize("preset", ["nft-sd35", "multi-reward-sd35"])
def test_presets_explain_themselves(preset: str, capsys) -> None:
    tasks = ["geneval"] if preset == "nft-sd35" else None
    told = said(capsys, None, tasks, preset=Path(preset))
    assert "at most (" in told
    assert "nan" not in told


def test_targets_that_the_model_does_not_have_are_wrong_use(sd3_folder: Path) -> None:
    spec = resolve("sft", ["geneval"], teachers="train", backbone=str(sd3_folder), overrides=["lora.targets=[nothing]"])
    with pytest.raises(UsageError, match=r"unknown layer in lora\.targets 'nothing'; .*known: .*attn\.to_q"):
        explain(spec)


def test_a_teacher_that_looks_while_the_graph_waits_is_in_the_memory(sd3_folder: Path) -> None:
    overrides = ["params.trajectories=8", "compute.precision=bfloat16", "sampler.guidance=1"]
    spec = resolve("opd_analytic", ["geneval"], teachers="train", backbone=str(sd3_folder), overrides=overrides)
    known = describe(spec.backbone).size(spec.compute)
    phases = training_memory(known, spec, spec.sampler.build(FlowLevels(3.0)))
    graph = known.training(8, Shape.of(spec.lora), spec.compute)
    beside = known.sampling(8, spec.compute).peak
    assert phases["training (activations of 8 latents (estimate))"] >= max(graph.peak, graph.kept + beside)
