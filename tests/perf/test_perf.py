"""What is measured is what is claimed: the baseline has OPD's gradient, evaluations are counted, files compare."""

import json
import os
import subprocess
import sys
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.backbones.meter import Passes
from bench.backbones.micro import descriptor
from bench.backbones.pipeline.shape_only import ShapeOnly
from bench.config.compute import Compute
from bench.errors import BenchError, UsageError
from bench.perf import ceilings, command, gate, kernels, measured, updates
from bench.perf.carried import carried
from bench.perf.command import comparison, read
from bench.perf.measured import Measurement, preset_hours
from bench.perf.timing import measure
from tests.methods.conftest import shake
from tests.sd3_shapes import sd3_size, shape_only

TEXTS = ["a photo of a red ring", "a photo of two circles", "a photo of a star"]
TINY = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 16, "pooled_projection_dim": 12,
    "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": [0],
}  # fmt: skip


@pytest.fixture
def fast(monkeypatch) -> None:
    """Little of everything."""
    monkeypatch.setattr(updates, "TRAJECTORIES", 6)
    monkeypatch.setattr("bench.perf.timing.REPETITIONS", 2)
    monkeypatch.setattr("bench.perf.timing.SHORTEST_S", 0.0)
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", {"cpu": 64})
    monkeypatch.setattr(kernels, "BATCHES", {"cpu": (2,)})
    monkeypatch.setattr("bench.perf.overhead.UPDATES", 4)


PASSED = cache(gate.gate)


@pytest.fixture
def passed(fast, monkeypatch) -> None:
    """The gate is passed once for all tests that are about something else."""
    monkeypatch.setattr(measured, "gate", PASSED)


def gradient(variant: updates.UpdateVariant, guidance: float) -> tuple[torch.Tensor, Passes]:
    lab = updates.laboratory(descriptor().load("cpu"), TEXTS, guidance)
    shake(lab.backbone, "teacher")
    shake(lab.backbone, STUDENT, 0.02)
    passes = updates.count(lab, updates.update(lab, variant))
    return torch.cat([p.grad.flatten() for p in lab.backbone.adapters.parameters(STUDENT)]), passes


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_every_variant_makes_the_same_gradient(fast, guidance: float) -> None:
    """The baseline is no straw man: it computes what the fast ways compute."""
    baseline, *others = updates.variants(6)
    wanted, cost = gradient(baseline, guidance)
    branches = 1 if guidance == 1 else 2
    # rollout, training, teacher
    assert cost.nfe == updates.TRAJECTORIES * branches * (10 + 9 * 3 + 9)
    assert cost == Passes(forward=10 + 9, trained=9) * (updates.TRAJECTORIES * branches)
    for variant in others:
        found, passes = gradient(variant, guidance)
        assert (found - wanted).norm() < 1e-4 * wanted.norm(), variant.label
        if variant.label == "fused":
            assert passes == Passes(forward=9, trained=9) * (updates.TRAJECTORIES * branches)


@pytest.mark.slow
def test_a_measurement_is_printed_written_and_compared(fast, tmp_path: Path, capsys, monkeypatch) -> None:
    command.perf(tmp_path / "a.json", None)
    printed = capsys.readouterr().out
    for said in ("GB/s", "straightforward, batch 3", "times baseline", "share of an update outside the model", "ocr-1"):
        assert said in printed
    found = read(tmp_path / "a.json")
    assert 0 < found["overhead"]["share"] < 1
    fused = next(row for row in found["updates"] if row["update"] == "fused")
    assert fused["images_per_s"] == pytest.approx(6 / fused["seconds"])
    assert fused["utilisation"] > 0
    slower = json.loads((tmp_path / "a.json").read_text())
    slower["ceilings"]["copy_bytes_per_s"] /= 2
    (tmp_path / "b.json").write_text(json.dumps(slower))
    command.perf(None, (tmp_path / "a.json", tmp_path / "b.json"))
    assert "0.50" in capsys.readouterr().out
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(UsageError, match=r"c\.json is not a measurement file"):
        comparison(tmp_path / "a.json", tmp_path / "c.json")


def test_the_shape_only_model_trains_and_is_measured(fast) -> None:
    """The path that a GPU takes, on a tiny configuration."""
    make = partial(shape_only, "cpu", config=TINY)
    lab = updates.laboratory(make(Compute(resolution=64)), TEXTS, 4.5)
    assert lab.backbone.latent_shape == (4, 8, 8)
    assert lab.backbone.decode(torch.zeros(2, 4, 8, 8)).shape == (2, 3, 64, 64)
    assert updates.rollout_row(lab)["evaluations"] == 6 * 2 * 10
    ways = {way.label: way for way in updates.variants(6, gpu=True)}
    chosen = (ways[updates.BASELINE], ways["fused, checkpointed"], ways["fused, chunk 12"])
    rows = [*updates.table(make, Compute(resolution=64, precision="bfloat16"), TEXTS, 4.5, chosen)]
    assert [row["evaluations"] for row in rows] == [6 * 2 * (10 + 27 + 9), 6 * 2 * (27 + 9), 6 * 2 * (27 + 9)]


def test_operations_of_a_row_are_counted_not_its_evaluations(fast) -> None:
    """A training pass is a forward pass and a backward pass of its own cost, not three forward passes."""
    size = sd3_size(TINY, 8, 205, {})
    one = size.training(1, Shape(updates.RANK, updates.ALPHA), Compute())
    again = size.training(1, Shape(updates.RANK, updates.ALPHA), Compute(gradient_checkpointing=True))
    row = {"passes": {"forward": 5, "trained": 7}, "gradient_checkpointing": False}
    assert measured.operations(row, size, Compute()) == 5 * size.flops + 7 * (one.forward + one.backward)
    row["gradient_checkpointing"] = True
    assert measured.operations(row, size, Compute()) == 5 * size.flops + 7 * (again.forward + again.backward)
    assert again.backward > one.backward + 0.8 * one.forward
    rates = [
        {"update": "rollout alone", "flop_per_s": 9.0},
        {"update": "a", "flop_per_s": 2.0},
        {"error": 1, "update": "b"},
    ]
    assert measured.fastest(rates) == 2.0


def test_presets_take_what_is_counted() -> None:
    """24 trajectories of three tasks; GenEval's teacher draws without guidance; nothing is recomputed."""
    hours = preset_hours(250e12)
    assert set(hours) >= {"diffusionopd-sd35", "nft-sd35", "flow-grpo-sd35-ocr"}
    forward, trained = 24 * 9 * (1 + 2 + 2), 24 * 9 * 2 * 3
    flop = forward * 2.225e12 + trained * 2.247e12 * (1 + 1.1212)
    assert hours["diffusionopd-sd35"] == pytest.approx(1000 * flop / 250e12 / 3600, rel=2e-3)


def test_what_does_not_fit_is_a_row_not_an_end(fast, monkeypatch) -> None:
    def full(self, *_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(ShapeOnly, "_forward", full)
    make = partial(shape_only, "cpu", config=TINY)
    rows = [*updates.table(make, Compute(), TEXTS, 1.0, (updates.UpdateVariant(updates.BASELINE, None),))]
    assert rows == [{"update": updates.BASELINE, "trajectories": 6, "error": "out of memory"}]


def test_repetitions_are_per_execution() -> None:
    calls = []
    timing = measure(lambda: calls.append(1), torch.device("cpu"))
    assert len(timing.repetitions) == 5
    assert timing.seconds < 1e-4
    assert len(calls) > 1000


def test_nothing_is_timed_after_a_wrong_result(fast, monkeypatch) -> None:
    rows = gate.gate(torch.device("cpu"))
    checks = [row["check"] for row in rows]
    assert {"noise", "gradient of an update", "step of cps in bfloat16", "gradient of the log-density of cps"} <= {*checks}
    right = gate.step

    def wrong(*inputs, **more):
        taken = right(*inputs, **more)
        return taken if taken.next.dtype == torch.float64 else type(taken)(taken.next * 1.001, taken.velocity, None)

    monkeypatch.setattr(gate, "step", wrong)
    monkeypatch.setattr(measured, "copy_bandwidth", lambda device: pytest.fail("timed"))
    with pytest.raises(BenchError, match=r"step of ode in float32 is wrong on cpu: .* nothing was timed"):
        Measurement(torch.device("cpu")).measure((), lambda found: None, lambda line: None)


def test_an_interrupted_measurement_goes_on_row_by_row(passed, tmp_path: Path, monkeypatch) -> None:
    """Cut off at any row, the file holds all rows before it, and the next call measures only the others."""
    path = tmp_path / "machine.json"
    real = kernels.measure
    timed: list[int] = []

    def cut_off(work, device):
        timed.append(1)
        if len(timed) == 4:
            raise KeyboardInterrupt
        return real(work, device)

    monkeypatch.setattr(kernels, "measure", cut_off)
    with pytest.raises(KeyboardInterrupt):
        command.perf(path, only=("kernels",))
    assert len(read(path)["kernels"]) == 3
    first = read(path)["kernels"]
    command.perf(path, only=("kernels",))
    assert len(timed) == 4 + 5 and read(path)["kernels"][:3] == first
    command.perf(path, only=("kernels",))
    assert len(timed) == 4 + 5  # nothing was left
    other = json.loads(path.read_text()) | {"device": "another machine"}
    path.write_text(json.dumps(other))
    with pytest.raises(UsageError, match="measurements with device another machine"):
        command.perf(path)
    with pytest.raises(UsageError, match="kernel"):
        command.perf(None, only=("kernel",))


# What a CUDA build of torch brings along.
WITH_TORCH = "torch triton numpy filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec setuptools"
BARE = """
import bench.cli.app, torch
from tests.sd3_shapes import shape_only
from bench.config.compute import Compute
from bench.perf import command, gate, updates
lab = updates.laboratory(shape_only("cpu", Compute(), config=TINY), ["a", "b"], 4.5)
updates.rollout_row(lab)
for way in updates.variants(2, gpu=True)[:4]:
    updates.update(lab, way)()
gate.gate(torch.device("cpu"))
"""


def test_a_measurement_that_was_cut_before_its_first_row_goes_on(passed, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "cut.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measured, "copy_bandwidth", _interrupted)
        command.perf(output, only=("ceilings",))
    assert "ceilings" not in json.loads(output.read_text())
    command.perf(output, only=("ceilings",))
    assert read(output)["ceilings"]["copy_bytes_per_s"] > 0
    # Other code measures something else.
    monkeypatch.setattr(measured, "code_hash", lambda: "changed")
    with pytest.raises(UsageError, match=r"holds measurements with code .* not changed: name another file"):
        command.perf(output, only=("ceilings",))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"only": ("kernel",)}, "did you mean 'kernels'"),
        ({"only": ("presets",)}, "presets is not measured on a CPU"),
        ({"carry": True, "only": ("kernels",)}, "--carry measures nothing: leave out the other options"),
        ({"compare": (Path("a"), Path("b")), "output": Path("c")}, "--compare measures nothing"),
    ],
)
def test_options_without_effect_are_refused(given: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        command.perf(**({"output": None} | given))


@pytest.mark.parametrize("change", [{"overhead": 5}, {"presets": [1]}, {"kernels": [{"bytes": 1}]}, {"updates": [{"update": "x"}]}])
def test_an_edited_file_is_no_measurement(passed, tmp_path: Path, change: dict) -> None:
    output = tmp_path / "edited.json"
    command.perf(output, only=("ceilings",))
    output.write_text(json.dumps(json.loads(output.read_text()) | change))
    with pytest.raises(UsageError, match="is not a measurement file"):
        command.perf(output, only=("ceilings",))


def test_what_must_be_carried_is_listed(tmp_path: Path) -> None:
    """With nothing installed but what is listed and a build of torch, a measurement of the GPU's kind works."""
    listed = [line.partition("==")[0] for line in carried() if not line.startswith("#")]
    assert {"diffusers", "peft"} <= {*listed}
    assert not {"torch", "optuna", "scipy", "pandas", "rapidocr"} & {*listed}
    for name in (*listed, *WITH_TORCH.split(), "multireward-bench"):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top != ".." and not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(distribution(name).locate_file(top))
    paths = os.pathsep.join(map(str, (tmp_path, Path(__file__).parents[2])))
    done = subprocess.run(
        [sys.executable, "-S", "-c", BARE.replace("config=TINY", f"config={TINY!r}")],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
