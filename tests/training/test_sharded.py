"""Frozen weights split over two processes (FSDP2 over gloo): the same updates, in less memory."""

import ctypes
import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from bench.backbones.adapters import Shape
from bench.backbones.conditioning import Conditioning
from bench.backbones.pipeline.called import FamilyBackbone
from bench.backbones.sd3 import SD3, Sd3Fields
from bench.config.compute import Compute
from bench.config.resolve import resolve
from bench.config.spec import Spec
from bench.store.run import read_checkpoint
from bench.system.workers import connect
from bench.training.execute import Session, execute
from tests.commands import together
from tests.once import once
from tests.training.test_workers import COMMON, NOISY, check_scores, made_by_two

pytestmark = pytest.mark.usefixtures("few_prompts")

RL = ["params.groups=4", "params.group_size=3"]
# Numbers of prompts that two processes share equally. Held-out prompts are thirteen, so that evaluations in batches of
# four end with unequal batches.
SETTINGS = {
    # With three steps, the processes follow unequally many states from the base.
    "opd_analytic": ["params.trajectories=4", "compute.batch=3", "probes.interference=2", "evaluation.steps=3", *NOISY],
    "opd_ppo": ["params.trajectories=4", "compute.gradient_checkpointing=true"],
    "dance_opd": ["params.trajectories=4"],
    "off_policy": ["params.trajectories=4"],
    "sft": ["params.trajectories=4"],
    "multi_reward": RL,
    "cascade": [*RL, "params.engine=grpo", "params.grpo.clip=10", "params.grpo.inner_updates=1"],
}


def spec_of(method: str, *more: str) -> Spec:
    overrides = [*COMMON, "evaluation.batch=4", *SETTINGS[method], *more]
    return resolve(method, ["ocr", "pickscore"], overrides=overrides)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every method's run by two processes that split the weights."""
    specs = [spec_of(method, "compute.shard=true") for method in SETTINGS]
    return once(tmp_path_factory, "sharded", lambda folder: made_by_two(specs, folder)) / "results"


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_two_processes_with_half_the_weights_update_as_one_does(pair: Path, tmp_path: Path, method: str) -> None:
    alone = execute(spec_of(method), Session(tmp_path / "results"))
    # How weights are split changes rounding only, so that the run keeps its name and can resume either way.
    one, two = (read_checkpoint(root / alone["folder"] / "checkpoint.safetensors")[0] for root in (tmp_path / "results", pair))
    assert one.keys() == two.keys()
    for name in one:
        if name.startswith("adapter/"):
            assert (one[name] - two[name]).abs().max() < 1e-6, name
    trained = [name for name in one if name.startswith("adapter/student") and "lora_B" in name]
    assert torch.cat([one[name].flatten() for name in trained]).norm() > 1e-3
    check_scores(alone, json.loads((pair / alone["folder"] / "summary.json").read_text()))


@pytest.mark.slow
def test_unequal_shards_are_refused(tmp_path: Path) -> None:
    """With unequal shards a process could wait for a pass that another one never makes."""
    words = [
        "run", "--method", "opd_analytic", "--tasks", "ocr", "--results", "results",
        *(part for s in (*COMMON, "params.trajectories=3", "compute.shard=true") for part in ("--set", s)),
    ]  # fmt: skip
    ended = together(words, tmp_path)
    assert [done.returncode for done in ended] == [2, 2]
    assert "cannot share 3 prompts per update of task 'ocr' equally" in ended[0].stderr


M_MMAP_THRESHOLD = -3
"""mallopt's number for it (malloc.h)."""


class Large(FamilyBackbone):
    """SD3's transformer with 300 MB of weights, and nothing around it."""

    latent_shape = (16, 8, 8)

    def __init__(self, compute: Compute) -> None:
        torch.manual_seed(0)
        network = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, num_layers=16, attention_head_dim=64, num_attention_heads=10,
            joint_attention_dim=64, caption_projection_dim=640, pooled_projection_dim=64, out_channels=16,
            pos_embed_max_size=8,
        )  # fmt: skip
        self._of(SD3, Sd3Fields.model_validate(dict(network.config)), None, "cpu")
        super().__init__("large", network, "", "cpu", compute)

    def _encode(self, prompts):
        for _ in prompts:
            yield Conditioning({"sequence": torch.ones(1, 4, 64), "pooled": torch.ones(1, 64)})

    def decode(self, latents):
        return latents[:, :3]


def megabytes(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure(shard: bool) -> None:
    """In each of two processes: print the peak of an update of a transformer of 300 MB, and no command after it."""
    c = ctypes.CDLL("libc.so.6")
    # glibc would keep freed blocks for later; with a fixed threshold it returns them, so that the peak is what is in use.
    c.mallopt(M_MMAP_THRESHOLD, 65536)
    connect("cpu")
    backbone = Large(Compute(shard=shard))
    backbone.adapters.add("student", Shape(4, 8.0), 0, trainable=True)
    conditioning = backbone.encode(["a"])
    x = torch.zeros(1, *backbone.latent_shape)

    def update() -> None:
        backbone.velocity(x, 0.5, conditioning, "student").square().sum().backward()

    update()
    c.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    update()
    own = lambda module: sum(p.numel() for n, p in module.named_parameters() if "lora_" not in n) * 4 / 2**20
    sizes = {"weights": own(backbone.transformer), "block": own(backbone.blocks(backbone.transformer)[0])}
    print(json.dumps({"peak": megabytes("VmHWM"), **sizes}))
    sys.exit()


@pytest.mark.slow
def test_each_process_holds_its_part_of_the_weights(tmp_path: Path) -> None:
    """Half of the weights less at the peak of an update, but for the blocks that are gathered at the time."""
    peaks = {}
    for how in ("whole", "sharded"):
        ended = together([], tmp_path, measure, (how == "sharded",))
        assert [done.returncode for done in ended] == [0, 0], ended[0].stderr[-3000:]
        peaks[how] = [json.loads(done.stdout) for done in ended]
    for whole, sharded in zip(peaks["whole"], peaks["sharded"]):
        assert whole["weights"] > 300
        saved = whole["peak"] - sharded["peak"]
        assert saved > whole["weights"] / 2 - 4 * whole["block"], (whole, sharded)
