"""Fixtures shared by all tests: no network, a loaded micro backbone, a tiny random SD3 pipeline on disk."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; also for the commands that tests start
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from tests.tiny_pipelines import sd3

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton, which reads it then


@pytest.hookimpl(optionalhook=True)  # -p no:xdist
def pytest_xdist_auto_num_workers() -> int:
    """Two more than cores: the tests of Slurm and of killed jobs wait more than they compute."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slurm's first, all with one worker: while they wait the others compute, and at the end nobody waits for them."""
    items.sort(key=lambda item: "slurm" not in item.path.parts)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test marked `alone` raises signals in its own process, which a worker of pytest-xdist would not survive."""
    if not pyfuncitem.get_closest_marker("alone") or "PYTEST_XDIST_WORKER" not in os.environ:
        return None
    from tests.commands import alone

    done = alone(pyfuncitem.nodeid, pyfuncitem.config.rootpath)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return True


@pytest.fixture(autouse=True)
def hidden_gpu(monkeypatch) -> None:
    """What is tested is the same with and without a GPU: commands that would take one where there is one do not see it.

    The modules that test the GPU's own kernels override this fixture; `tests.commands` hides it from its processes.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="module")
def few_prompts() -> Iterator[None]:
    """A dozen held-out prompts or so per task, in this process and in the commands of `tests.commands.bench`.

    A module that is not about scores asks for it by `pytestmark = pytest.mark.usefixtures("few_prompts")`: most of its
    time would go into evaluations.
    """
    from tests import commands
    from tests.few import few_prompts

    with pytest.MonkeyPatch.context() as patch:
        few_prompts(patch.setattr)
        patch.setattr(commands, "FEW", True)
        yield


@pytest.fixture
def micro():
    """A fresh micro backbone (adapters are added to it in place)."""
    from bench.backbones.micro import descriptor

    return descriptor().load("cpu")


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight StableDiffusion3Pipeline without T5, saved in diffusers' format."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd3")
    sd3().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Mask2Former for 80 classes in transformers' format."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, num_attention_heads=2, encoder_layers=1, decoder_layers=2, num_queries=9, num_labels=80,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mask2former")
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # sure of what it sees, and not always of nothing
        model.class_predictor.weight.mul_(30)
        model.class_predictor.bias[-1] = -5
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def small(monkeypatch) -> None:
    """Scorers of photographs look at small images, in this process (see tests/small_scorers.py)."""
    from tests.small_scorers import small_scorers

    small_scorers(monkeypatch.setattr)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight CLIPModel with a tokenizer of letters and an image processor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokens), "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    vision = tower | {"image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_tasks(monkeypatch) -> Iterator[None]:
    """The tasks red, dark and picky of tests/tiny_tasks.py are registered."""
    from bench import registry
    from tests.tiny_tasks import register

    register(monkeypatch.setattr)
    yield
    monkeypatch.undo()
    registry._points.cache_clear()


@pytest.fixture(scope="session")
def photo_scorers(detector_folder: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Task -> settings of its tiny photographic scorer, and prompts; and those of the feature space."""
    prompts = tmp_path_factory.mktemp("prompts")
    for split, count in (("train", 20), ("validation", 2), ("test", 3)):
        (prompts / f"{split}.txt").write_text("".join(f'a {split} sign {i} saying "word {i}"\n' for i in range(count)))
    return {
        "geneval": {"converted": str(detector_folder), "colours": str(clip_folder)},
        "ocr": {"prompts": str(prompts)},
        "pickscore": {"prompts": str(prompts), "model": str(clip_folder), "processor": str(clip_folder)},
        "features": {"model": str(clip_folder)},
    }
