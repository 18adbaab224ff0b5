"""Teachers that are whole models: the same lessons as from an adapter, also from a model of another size."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from bench.backbones.micro.files import WEIGHTS
from bench.backbones.teacher_files import whole_teachers
from bench.backbones.whole_models import WholeModels
from bench.config.resolve import describe, resolve
from bench.errors import DamagedError, MissingError, UsageError
from bench.store.run import read_checkpoint
from bench.training.execute import Session, execute
from tests.training.test_workers import COMMON, made_by_two

pytestmark = pytest.mark.usefixtures("few_prompts")
BASE = WEIGHTS / "base" / "transformer"
MIXED = ["params.trajectories=4", "params.batches=mixed"]


def spec_of(*more: str):
    return resolve("opd_analytic", ["ocr", "pickscore"], overrides=[*COMMON, *MIXED, *more])


def student(root: Path, folder: str) -> torch.Tensor:
    tensors, _ = read_checkpoint(root / folder / "checkpoint.safetensors")
    return torch.cat([v.flatten() for k, v in sorted(tensors.items()) if k.startswith("adapter/student")])


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped teacher of ocr as a model of its own: its weight change added to the base's weights."""
    backbone = describe("micro").load("cpu")
    backbone.adapters.load("ocr", WEIGHTS / "teachers" / "ocr")
    whole = SD3Transformer2DModel.from_pretrained(BASE)
    layers = dict(whole.named_modules())
    with torch.no_grad():
        for name, delta in backbone.adapters.deltas("ocr").items():
            layers[name].weight += delta
    folder = tmp_path_factory.mktemp("whole") / "ocr"
    whole.save_pretrained(folder)
    return folder


def larger(folder: Path, **other: object) -> Path:
    """A model of random weights with two blocks more than the base."""
    config = SD3Transformer2DModel.load_config(BASE)
    torch.manual_seed(0)
    more = {"num_layers": config["num_layers"] + 2} | other
    SD3Transformer2DModel.from_config(config | more).save_pretrained(folder)
    return folder


def test_a_whole_model_teaches_what_its_adapter_teaches(merged: Path, tmp_path: Path) -> None:
    by_adapter = execute(spec_of(), Session(tmp_path / "a"))
    by_model = execute(spec_of(f"teachers.ocr={merged}"), Session(tmp_path / "b"))
    one, two = student(tmp_path / "a", by_adapter["folder"]), student(tmp_path / "b", by_model["folder"])
    assert by_model["folder"] != by_adapter["folder"]
    assert (one - two).norm() < 1e-4 * one.norm()
    assert by_model["cost"]["evaluations"]["training"] == by_adapter["cost"]["evaluations"]["training"]
    scores = [summary["models"]["teacher ocr"]["ocr"]["rows"] for summary in (by_adapter, by_model)]
    for metric, values in scores[0].items():
        assert scores[1][metric] == pytest.approx(values, abs=1e-3), metric


def test_a_pipeline_s_folder_and_its_transformer_s_are_the_same_teacher(merged: Path, tmp_path: Path) -> None:
    home = tmp_path / "pipeline"
    home.mkdir()
    (home / "model_index.json").write_text("{}")
    (home / "transformer").symlink_to(merged)
    one, two = execute(spec_of(f"teachers.ocr={home}"), Session(tmp_path / "a")), execute(
        spec_of(f"teachers.ocr={home / 'transformer'}"), Session(tmp_path / "b")
    )
    assert torch.equal(student(tmp_path / "a", one["folder"]), student(tmp_path / "b", two["folder"]))
    assert one["teachers"]["ocr"]["hash"] == two["teachers"]["ocr"]["hash"]


def test_a_teacher_may_be_larger_than_the_student(tmp_path: Path) -> None:
    """Offloading changes where it waits, not what it says, and so not the run's name."""
    made = []
    for name, more in (("resident", ()), ("offloaded", ("compute.offload_teachers=true",))):
        both = (f"teachers.{task}={larger(tmp_path / task)}" for task in ("ocr", "pickscore"))
        summary = execute(spec_of(*both, *more), Session(tmp_path / name))
        made.append((summary["folder"], student(tmp_path / name, summary["folder"])))
    assert made[0][0] == made[1][0]
    assert torch.equal(made[0][1], made[1][1])


def test_only_the_model_in_use_is_on_the_device() -> None:
    """On a device of type meta, which holds no numbers: what is there has been moved there."""
    models, networks = WholeModels(torch.device("meta"), offload=True), {n: nn.Linear(2, 2) for n in "ab"}
    before = {name: network.weight.detach().clone() for name, network in networks.items()}
    for name, network in networks.items():
        models.add(name, network, lambda network: pytest.fail("offloaded, yet placed"))
    for name, other in ("ab", "ba", "ab"):
        assert models.use(name) is networks[name]
        assert networks[name].weight.is_meta
        assert networks[name].bias.is_meta
        assert torch.equal(networks[other].weight, before[other])


def test_memory_of_whole_teachers_is_predicted(tmp_path: Path) -> None:
    folder = larger(tmp_path / "large")
    spec = spec_of(f"teachers.ocr={folder}")
    tensors = SD3Transformer2DModel.from_pretrained(folder).state_dict().values()
    assert whole_teachers(spec.teachers) == {"ocr": sum(tensor.numel() for tensor in tensors)}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"in_channels": 8, "out_channels": 8}, "does not take this backbone's latents and prompts"),
        ({"out_channels": 8}, r"predicts latents of shape \(8, 4, 4\), not \(64, 4, 4\)"),
        ({"joint_attention_dim": 24}, "does not take this backbone's latents and prompts"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(tmp_path: Path, other: dict, message: str) -> None:
    spec = spec_of(f"teachers.ocr={larger(tmp_path / 'other', **other)}")
    with pytest.raises(UsageError, match=message):
        execute(spec, Session(tmp_path / "results"))


def test_other_models_are_refused_by_name(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="equals the base model"):
        execute(spec_of(f"teachers.ocr={BASE}"), Session(tmp_path / "results"))
    copy = larger(tmp_path / "copy")
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(told | {"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(UsageError, match="holds a FluxTransformer2DModel"):
        execute(spec_of(f"teachers.ocr={copy}"), Session(tmp_path / "results"))
    (copy / "config.json").write_text(json.dumps(told | {"num_layers": told["num_layers"] + 1}))
    with pytest.raises(DamagedError, match=r"differs from the one in its config\.json"):
        execute(spec_of(f"teachers.ocr={copy}"), Session(tmp_path / "results"))
    with pytest.raises(UsageError, match="needs teachers that are adapters"):
        execute(spec_of(f"teachers.ocr={merged}", "params.start=merge"), Session(tmp_path / "results"))
    with pytest.raises(UsageError, match="leave out offload_teachers"):
        spec_of("compute.shard=true", "compute.offload_teachers=true")


def test_a_pipeline_without_a_transformer_is_named(tmp_path: Path) -> None:
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableCascadeCombinedPipeline", "decoder": ["x", "UNet"]}))
    with pytest.raises(UsageError, match="holds a StableCascadeCombinedPipeline, which has no transformer or UNet"):
        execute(spec_of(f"teachers.ocr={tmp_path}"), Session(tmp_path / "results"))
    index.write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3"]}))
    with pytest.raises(MissingError, match="has no folder transformer: complete the download"):
        execute(spec_of(f"teachers.ocr={tmp_path}"), Session(tmp_path / "results"))
    index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet"]}))
    with pytest.raises(MissingError, match="has no folder unet: complete the download"):
        execute(spec_of(f"teachers.ocr={tmp_path}"), Session(tmp_path / "results"))


def test_a_damaged_model_is_refused_before_training(tmp_path: Path) -> None:
    damaged = SD3Transformer2DModel.from_pretrained(BASE)
    with torch.no_grad():
        damaged.proj_out.weight[0, 0] = torch.nan
    damaged.save_pretrained(tmp_path / "damaged")
    with pytest.raises(UsageError, match="predicts values that are not finite"):
        execute(spec_of(f"teachers.ocr={tmp_path / 'damaged'}"), Session(tmp_path / "results"))


def test_a_changed_model_is_another_teacher(tmp_path: Path) -> None:
    folder = larger(tmp_path / "other")
    spec = spec_of(f"teachers.ocr={folder}", "budget.updates=1")
    execute(spec, Session(tmp_path / "results"))
    torch.manual_seed(1)
    SD3Transformer2DModel.from_config(SD3Transformer2DModel.load_config(folder)).save_pretrained(folder)
    with pytest.raises(UsageError, match="started with a different adapter or teacher for ocr"):
        execute(spec, Session(tmp_path / "results"))


@pytest.mark.slow
def test_two_processes_that_split_it_update_as_one_does(tmp_path: Path) -> None:
    folder = larger(tmp_path / "large")
    spec = spec_of(f"teachers.ocr={folder}", "evaluation.batch=4")
    split = spec_of(f"teachers.ocr={folder}", "evaluation.batch=4", "compute.shard=true")
    alone = execute(spec, Session(tmp_path / "one"))
    (tmp_path / "two").mkdir()
    made_by_two([split], tmp_path / "two")
    one, two = (student(root, alone["folder"]) for root in (tmp_path / "one", tmp_path / "two" / "results"))
    assert (one - two).abs().max() < 1e-6
