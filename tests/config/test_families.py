"""Which family runs a pipeline: by the class in its index, and one line for what no family runs."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench import registry
from bench.backbones.sd3 import family as sd3
from bench.backbones.sd3.published import DEFAULT
from bench.config import families
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.families import Family, describe_pipeline, pipeline_class
from bench.config.resolve import describe
from bench.errors import DamagedError, MissingError, UsageError
from bench.sampler.levels import FlowLevels
from tests.commands import bench

OTHER = Descriptor("other", "photo", FlowLevels(), load=lambda *_: None, fingerprint=lambda: "")


def pipeline(folder: Path, kind: object) -> str:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return str(folder)


def with_makers(monkeypatch, **makers) -> None:
    """Register functions that make families; only sd3 is this project's."""
    monkeypatch.setattr(families, "usable", lambda kind: makers)
    for module in (families, registry):
        monkeypatch.setattr(module, "ours", lambda kind, name: name == "sd3")
        monkeypatch.setattr(module, "broken", lambda kind, name, why: MissingError(f"{kind} {name} {why}"))


def with_families(monkeypatch, **made) -> None:
    with_makers(monkeypatch, **{name: (lambda family=family: family) for name, family in made.items()})


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("AuraFlowPipeline", "a text-to-image pipeline of a family that no registered plug-in runs"),
        ("StableDiffusionXLInpaintPipeline", "which starts from an image and not from text alone"),
        ("StableDiffusion3Img2ImgPipeline", "which starts from an image and not from text alone"),
        ("StableDiffusion3ControlNetPipeline", "which starts from an image and not from text alone"),
        ("FluxKontextPipeline", "which starts from an image and not from text alone"),
        ("WanPipeline", "which diffusers does not list as making images from text"),
        ("DDPMPipeline", "which diffusers does not list as making images from text"),
        ("NoSuchPipeline", "which this version of diffusers does not have"),
    ],
)
def test_what_no_family_runs_is_named(tmp_path: Path, kind: str, what: str) -> None:
    source = pipeline(tmp_path / "p", kind)
    with pytest.raises(UsageError) as refused:
        describe(source)
    supported = ", ".join(name for family in families.families().values() for name in family.pipelines)
    assert "FluxPipeline" in supported and "StableDiffusionPipeline" in supported
    assert str(refused.value) == f"{source} holds a {kind}, {what}; supported: {supported}"


def test_a_plug_in_s_family_runs_its_pipelines(tmp_path: Path, monkeypatch) -> None:
    asked: list[str] = []
    other = Family(("OtherPipeline",), lambda source: asked.append(source) or OTHER)
    with_families(monkeypatch, sd3=sd3(), other=other)
    source = pipeline(tmp_path / "p", "OtherPipeline")
    assert describe_pipeline(source) is OTHER and asked == [source]
    with_families(monkeypatch, other=other, rival=other)
    with pytest.raises(UsageError, match="several families run OtherPipeline: other, rival; uninstall"):
        describe_pipeline(source)


def test_a_single_file_goes_to_the_family_that_reads_it(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"mine.weight": torch.zeros(1)}, file)
    other = Family(("OtherPipeline",), lambda source: OTHER, lambda path: path == file)
    with_families(monkeypatch, sd3=sd3(), other=other)
    assert describe_pipeline(str(file)) is OTHER
    with_families(monkeypatch, sd3=sd3())
    with pytest.raises(UsageError, match=r"it holds no SD3 transformer; it holds mine\.weight"):
        describe_pipeline(str(file)).check(Compute())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DamagedError, match="cut"):
        describe_pipeline(str(cut)).check(Compute())


def fails(*_) -> Family:
    raise RuntimeError("no licence")


def leaves(*_) -> Family:
    raise SystemExit("bye")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (fails, "fails: RuntimeError: no licence"),
        (leaves, "fails: SystemExit: bye"),
        (lambda: None, "returns NoneType instead of a Family"),
        (lambda: Family(None, fails), "has pipelines None instead of a tuple of names"),
        (lambda: Family("XStableDiffusion3PipelineX", fails), "instead of a tuple of names"),
        (lambda: Family(("A",), fails, "yes"), "has a describe or reads that is not a function"),
    ],
)
def test_a_broken_plug_in_is_left_out(monkeypatch, capsys, make, told: str) -> None:
    with_makers(monkeypatch, sd3=sd3, bad=make)
    registry._say.cache_clear()
    assert list(families.families()) == ["sd3"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left out: family bad ") and told in line


@pytest.mark.parametrize(
    ("describes", "told"),
    [(fails, "fails: RuntimeError: no licence"), (leaves, "fails: SystemExit: bye"), (lambda source: None, "by NoneType instead of a Descriptor")],
)
def test_a_plug_in_that_fails_later_is_named(tmp_path: Path, monkeypatch, describes, told: str) -> None:
    with_families(monkeypatch, sd3=sd3(), bad=Family(("BadPipeline",), describes))
    with pytest.raises(MissingError, match=told):
        describe_pipeline(pipeline(tmp_path / "p", "BadPipeline"))


def test_files_that_no_family_reads_are_never_left_to_another_package(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"transformer_blocks.0.attn.to_q.weight": torch.zeros(1)}, file)  # as in Qwen-Image, PixArt and LTX
    a_first = Family(("OtherPipeline",), lambda source: OTHER, lambda path: False)
    with_families(monkeypatch, a_first=a_first, sd3=sd3())
    with pytest.raises(UsageError, match="it holds no SD3 transformer"):
        describe_pipeline(str(file)).check(Compute())
    claims = Family(("OtherPipeline",), lambda source: OTHER, lambda path: True)
    with_families(monkeypatch, a_first=claims, sd3=sd3())
    assert describe_pipeline(str(file)) is OTHER


def test_a_registered_name_is_never_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline(tmp_path / "micro", "WanPipeline")
    assert describe("micro").world == "micro"
    with pytest.raises(UsageError, match="holds a WanPipeline"):
        describe("./micro")


@pytest.mark.parametrize("address", ["hub:owner/repo@main", "hub:own..er/repo", "hub:owner/re:po"])
def test_a_name_that_the_hub_does_not_allow_is_one_line(address: str) -> None:
    with pytest.raises(UsageError, match=r"should be hub:OWNER/REPO without a revision"):
        describe(address)


def test_a_published_address_is_known_without_its_index(monkeypatch) -> None:
    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", asked)
    assert describe(DEFAULT).size(Compute()).parameters > 2e9


def test_a_refusal_imports_no_library(tmp_path: Path) -> None:
    """torch and diffusers take seconds, and their remarks would be lines before the error."""
    source = pipeline(tmp_path / "p", "AuraFlowPipeline")
    code = f"""
import sys
from bench.config.resolve import describe
try:
    describe({source!r})
except Exception as error:
    print(type(error).__name__, sorted({{"torch", "diffusers", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("UsageError []", "")


@pytest.mark.parametrize("kind", [None, ["module", "Class"], "not a name", 3, "models", "P" * 200 + "Pipeline"])
def test_an_index_without_a_class_is_an_error(tmp_path: Path, kind: object) -> None:
    with pytest.raises(UsageError, match=r"model_index\.json names no pipeline class"):
        pipeline_class(pipeline(tmp_path / "p", kind))


def test_the_index_of_a_hub_repository_is_read_from_its_cache_or_downloaded(tmp_path: Path, monkeypatch) -> None:
    index = Path(pipeline(tmp_path / "p", "WanPipeline")) / "model_index.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: str(index))
    assert pipeline_class("hub:owner/repo") == "WanPipeline"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    fetched = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *what: fetched.append(what) or str(index))
    assert pipeline_class("hub:owner/repo") == "WanPipeline"
    assert fetched == [("owner/repo", "model_index.json")]


def test_an_inpainting_checkpoint_is_refused(sd3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inpaint"
    shutil.copytree(sd3_folder, folder)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"in_channels": 2 * config["in_channels"] + 1}))
    with pytest.raises(UsageError, match="not inpainting or editing ones"):
        describe(str(folder))


def test_the_list_names_families() -> None:
    line = f"    {'StableDiffusion3Pipeline':<36}family sd3; also in a single .safetensors file"
    assert line in bench(["list", "backbones"]).stdout.splitlines()


@pytest.mark.parametrize("named", ["hub:owner/repo", "sd3"])
def test_a_folder_with_the_name_of_a_repository_is_not_read_in_its_place(
    tmp_path: Path, monkeypatch, named: str
) -> None:
    repository = "owner/repo" if named != "sd3" else "stabilityai/stable-diffusion-3.5-medium"
    pipeline(tmp_path / repository, "StableDiffusion3Pipeline")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"there is a folder {repository} here, .*or write ./{repository} to use it"):
        describe(named)


def test_a_family_is_registered_by_its_own_name(monkeypatch) -> None:
    """Or messages would call it by a name that nobody registered."""
    with_families(monkeypatch, mine=replace(sd3(), name="aura"))
    assert families.families() == {}
    with_families(monkeypatch, aura=replace(sd3(), name="aura"))
    assert list(families.families()) == ["aura"]
