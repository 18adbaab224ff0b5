"""Runs that train all weights: what they start from, leave behind and cost, and what they refuse.

Kills and two processes are tried with all methods, in test_resume.py and test_workers.py.
"""

import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.api.lab import STUDENT
from bench.backbones.adapters import student_shape
from bench.backbones.full_weights import Full
from bench.config.compute import Compute
from bench.config.resolve import describe, resolve
from bench.errors import UsageError
from bench.prediction.footprint import memory_lines
from bench.training.execute import Session, execute
from bench.training.start import add_student
from tests.commands import bench
from tests.tiny_pipelines import PIPELINES

pytestmark = pytest.mark.usefixtures("few_prompts")

FULL = "full_finetuning=true"
SMALL = [
    "budget.updates=2", "ema.every=1", "evaluation.steps=1", "evaluation.points=[]", "evaluation.split=validation",
]  # fmt: skip
OPD = [*SMALL, "params.trajectories=2", "optimizer.lr=1e-5"]


def run(folder: Path, method: str, tasks: list[str], *settings: str) -> tuple[dict, Path]:
    """A run's summary and folder."""
    spec = resolve(method, tasks, overrides=list(settings))
    summary = execute(spec, Session(folder))
    return summary, folder / summary["folder"]


def test_a_run_leaves_a_network_that_loads_teaches_and_is_scored(tmp_path: Path) -> None:
    root = tmp_path / "results" / "runs"
    summary, folder = run(root, "opd_analytic", ["ocr"], FULL, *OPD)
    assert not (folder / "adapter").exists()
    base = describe("micro").load("cpu").transformer.state_dict()
    student = SD3Transformer2DModel.from_pretrained(folder / "model").state_dict()
    moved = {name for name, value in student.items() if not torch.equal(value, base[name])}
    assert {name.rpartition(".")[2] for name in moved} == {"weight", "bias"} and len(moved) > 0.8 * len(base)
    assert json.loads((folder / "spec.json").read_text())["spec"]["full_finetuning"] is True
    assert "lora" not in json.loads((folder / "spec.json").read_text())["spec"]
    # As a teacher, a frozen student of a probe, an argument of bench eval, and in the contact sheet.
    _, taught = run(root, "opd_analytic", ["ocr"], *OPD, f"teachers.ocr={folder / 'model'}")
    teacher = json.loads((taught / "summary.json").read_text())
    assert teacher["teachers"]["ocr"]["evaluations"] == summary["cost"]["evaluations"]["training"]
    assert teacher["models"]["teacher ocr"]["ocr"]["rows"] == summary["models"]["student"]["ocr"]["rows"]
    words = ["--tasks", "ocr", "--set", "params.trajectories=2"]
    probed = bench(["probe", "--method", "opd_analytic", *words, "--student", str(folder / "model"), "--states", "2"], tmp_path)
    assert probed.returncode == 0, probed.stderr
    done = bench(["eval", "--adapter", str(folder / "model"), "--tasks", "ocr", "--steps", "1", "--split", "validation"], tmp_path)
    assert done.returncode == 0, done.stderr
    again = bench(["run", "--method", "opd_analytic", "--tasks", "ocr", *sets(FULL, *OPD)], tmp_path)
    assert "already finished" in again.stdout + again.stderr and (folder / "sheet.png").is_file()


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_teachers_can_be_trained_in_full(tmp_path: Path) -> None:
    taught = bench(
        ["teach", "--tasks", "ocr", *sets(FULL, *SMALL, "params.groups=4", "params.group_size=6", "optimizer.lr=1e-5")],
        tmp_path,
    )
    assert taught.returncode == 0, taught.stderr
    (folder,) = tmp_path.glob("results/runs/teachers-*/ocr")
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "training.json"
    }  # fmt: skip
    done = bench(
        ["run", "--method", "opd_analytic", "--tasks", "ocr", "--teachers", str(folder.parent), *sets(*OPD)], tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_merged_teachers_are_held_exactly(tmp_path: Path) -> None:
    """All weights can hold every change; an adapter of the same run only a part."""
    small = ["evaluation.steps=1", "evaluation.split=validation"]
    for settings, kept in ([FULL], 1.0), (["lora.rank=4"], None):
        _, folder = run(tmp_path, "merge", ["ocr", "geneval"], *small, *settings)
        found = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["energy_kept"]
        assert found == kept if kept else found < 0.99


def test_a_comparison_and_its_report_read_both_kinds(tmp_path: Path) -> None:
    words = ["compare", "--methods", "opd_analytic", "--tasks", "ocr", "--seeds", "0,1", "--grid", "full_finetuning=true,false"]
    settings = [setting for setting in OPD if not setting.startswith(("budget", "optimizer"))]
    done = bench([*words, "--budget", "60", *sets(*settings), "--results", "results/both"], tmp_path)
    assert done.returncode == 0, done.stderr
    told = next(tmp_path.glob("results/both/report-*/report.md")).read_text()
    assert "damaged" not in told + done.stdout + done.stderr
    assert "full_finetuning=true" in told and "full_finetuning=false" in told


def test_a_probe_measures_a_student_with_all_weights(tmp_path: Path) -> None:
    words = ["probe", "--methods", "opd_analytic,opd_ppo", "--tasks", "ocr", "--states", "2"]
    few = sets("opd_analytic.params.trajectories=2", "opd_ppo.params.trajectories=2", "sampler.kernel=cps", "sampler.eta=0.8")
    done = bench([*words, *few, *sets(FULL)], tmp_path)
    assert done.returncode == 0, done.stderr
    refused = bench([*words, *sets(FULL), "--student", "somewhere"], tmp_path)
    assert refused.returncode == 2 and "full_finetuning has no effect in a probe of a trained student" in refused.stderr


def test_a_preset_s_adapter_gives_way() -> None:
    spec = resolve(None, None, preset=Path("diffusionopd-sd35"), overrides=[FULL])
    assert spec.full_finetuning and spec.lora == resolve("merge", ["ocr"]).lora.model_copy(update={"rank": 32, "alpha": 64.0})
    with pytest.raises(UsageError, match=r"lora\.rank has no effect with full_finetuning"):
        resolve(None, None, preset=Path("diffusionopd-sd35"), overrides=[FULL, "lora.rank=8"])


@pytest.mark.parametrize("name", ["sd3", "sana"])
def test_half_precision_rounds_no_weight_of_a_student(name: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """An untrained student is saved as the pipeline's file, to the bit."""
    from safetensors.torch import load_file

    folder = PIPELINES[name].folder(tmp_path_factory)
    spec = resolve("single_task", ["ocr"], backbone=str(folder), overrides=[FULL, "compute.precision=bfloat16"])
    backbone = describe(str(folder)).load("cpu", spec.compute)
    add_student(backbone, spec, 0)
    backbone.adapters.save(STUDENT, tmp_path)
    file = "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / file), load_file(folder / "transformer" / file)
    assert ours.keys() == theirs.keys()
    rounded = {key for key, value in ours.items() if not torch.equal(value, theirs[key])}
    assert rounded <= {"pos_embed.pos_embed"}  # a table that is computed again when the network is made
    assert {value.dtype for value in ours.values()} == {torch.float32}


def test_whole_teachers_are_not_merged(tmp_path: Path) -> None:
    _, folder = run(tmp_path, "opd_analytic", ["ocr"], FULL, *OPD)
    for method, more in ("merge", []), ("opd_analytic", ["params.start=merge"]):
        with pytest.raises(UsageError, match=r"needs teachers that are adapters, but teachers\.ocr .* is a whole model"):
            resolve(method, ["ocr"], overrides=[f"teachers.ocr={folder / 'model'}", *more])


def test_the_kinds_of_students_are_different_runs() -> None:
    plain, full = (resolve("opd_analytic", ["ocr"], overrides=more) for more in ([], [FULL]))
    assert plain.digest("") != full.digest("")
    assert resolve("opd_analytic", ["ocr"], overrides=["full_finetuning=false"]) == plain
    assert "full_finetuning" not in plain.record()
    assert student_shape(full) == Full()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["lora.rank=4"], "lora.rank has no effect with full_finetuning"),
        (["lora.start=somewhere"], "lora.start has no effect with full_finetuning"),
        (["compute.shard=true"], "compute.shard splits frozen weights over processes"),
        (["params.batches=mixed", "params.preference=drawn"], "cannot be used with full_finetuning"),
        (["optimizer.name=Muon"], "optimizer.name Muon: .*2D"),
    ],
)
def test_what_needs_an_adapter_is_refused(settings: list[str], why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        execute(resolve("opd_analytic", ["ocr", "geneval"], overrides=[FULL, *settings]), Session(tmp_path))


def test_predictions_count_all_weights(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(PIPELINES["flux-dev"].folder(tmp_path_factory))
    spec = resolve("single_task", ["ocr"], backbone=folder, overrides=[FULL, "compute.resolution=32"])
    size, backbone = describe(folder).size(spec.compute), describe(folder).load("cpu", spec.compute)
    backbone.adapters.add(STUDENT, Full(), trainable=True)
    assert size.student(Full()) == size.parameters == sum(p.numel() for p in backbone.adapters.parameters(STUDENT))
    conditioning, x = backbone.encode([""]), backbone.noise(1, torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.velocity(x, 0.5, conditioning, STUDENT).sum().backward()
    one = backbone.size(conditioning).training(1, Full(), spec.compute)
    assert one.forward + one.backward == pytest.approx(counter.get_total_flops(), rel=1e-3)
    # Two forward passes, but for what needs no gradient: the input of the first layers.
    assert 1.7 < one.backward / one.forward < 2.1
    # The gradient is held throughout, and is not counted again in the pass.
    adapter = backbone.size(conditioning).training(1, student_shape(resolve("single_task", ["ocr"])), spec.compute)
    assert one.kept < 1.5 * adapter.kept
    text = " ".join(memory_lines(size, size, spec, describe(folder).sampler(spec)))
    # The student, its average, the old policy of DiffusionNFT, a gradient and two moments.
    assert f"3 models and 0 adapters, gradient, optimiser {6 * 4 * size.parameters / 1e9:.1f}" in text


def test_gradients_that_are_combined_are_in_the_memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of each of two tasks one, and two more while they become one."""
    folder = str(PIPELINES["sd3"].folder(tmp_path_factory))
    found = {}
    for rule in ("sum", "pcgrad"):
        settings = [FULL, f"params.combine={rule}", "compute.resolution=8", "evaluation.batch=1", "params.groups=1", "params.group_size=2"]
        spec = resolve("multi_reward", ["ocr", "geneval"], backbone=folder, overrides=settings)
        size = describe(folder).size(spec.compute)
        found[rule] = " ".join(memory_lines(size, size, spec, describe(folder).sampler(spec)))
    assert "combining gradients" in found["pcgrad"] and "combining gradients" not in found["sum"]


def test_the_published_recipe_s_cost_is_that_of_two_more_forward_passes() -> None:
    """SD3.5-Medium: a backward pass of about two forward passes, and one more with checkpointing."""
    from bench.backbones.sd3.published import DEFAULT
    from tests.sd3_shapes import size

    medium = size(DEFAULT, Compute(resolution=512))
    for checkpointed, wanted in ((False, 2.0), (True, 3.0)):
        found = medium.training(1, Full(), Compute(precision="bfloat16", gradient_checkpointing=checkpointed))
        assert found.backward / found.forward == pytest.approx(wanted, abs=0.05)
