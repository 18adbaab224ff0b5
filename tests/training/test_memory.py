"""Out of memory: one line that says where and which settings help."""

import re
from pathlib import Path

import pytest
import torch

from bench.backbones.flow import FlowBackbone
from bench.backbones.micro.files import WEIGHTS
from bench.config.compute import Compute
from bench.config.resolve import resolve
from bench.config.settings import merge
from bench.config.spec import Spec
from bench.errors import BenchError
from bench.registry import find
from bench.training.execute import Session, execute
from bench.training.out_of_memory import exhausted, memory, memory_of

pytestmark = pytest.mark.usefixtures("few_prompts")

QUICK = ["budget.updates=1", "evaluation.steps=1", "evaluation.points=[]"]


def fail_when(monkeypatch, condition) -> None:
    """Every forward for which `condition(grad enabled)` holds finds no memory."""
    honest = FlowBackbone._forward

    def forward(self, *args):
        if condition(torch.is_grad_enabled()):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return honest(self, *args)

    monkeypatch.setattr(FlowBackbone, "_forward", forward)


def test_training_names_its_settings(tmp_path: Path, monkeypatch) -> None:
    fail_when(monkeypatch, lambda grad: grad)
    spec = resolve("opd_analytic", ["ocr"], overrides=QUICK)
    with pytest.raises(
        BenchError,
        match=r"out of memory on cpu in training; resume .*gradient_checkpointing=true, .*start a new run with a lower params\.chunk \(now 128\)",
    ):
        execute(spec, Session(tmp_path / "results"))
    spec = resolve(
        "multi_reward",
        ["ocr"],
        overrides=[*QUICK, "compute.gradient_checkpointing=true", "params.groups=2", "params.group_size=2"],
    )
    with pytest.raises(BenchError, match=r"params\.nft\.chunk \(now 192\)") as told:
        execute(spec, Session(tmp_path / "results"))
    assert "gradient_checkpointing" not in str(told.value)


def test_evaluation_names_its_settings(tmp_path: Path, monkeypatch) -> None:
    fail_when(monkeypatch, lambda grad: not grad)
    spec = resolve("merge", ["ocr"], overrides=["evaluation.steps=1"])
    with pytest.raises(BenchError, match=r"in evaluation; .*a lower evaluation\.batch \(now 96\)"):
        execute(spec, Session(tmp_path / "results"))


def test_the_cpu_allocators_error_counts_and_others_do_not() -> None:
    spec = resolve("opd_analytic", ["ocr"])
    with pytest.raises(BenchError, match="in loading"), memory("loading", spec):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="another"), memory("loading", spec):
        raise RuntimeError("another")


SD3 = ["device=cuda", "compute.resolution=512"]
TRAINING = {
    "opd_analytic": (
        ["params.chunk=128", "params.trajectories=24"],
        {"a lower params.chunk (now 128) below 24", "a lower params.trajectories (now 24)"},
    ),
    "opd_analytic plain": (
        ["params.execution=plain"], {"a lower params.chunk (now 128)", "a lower params.trajectories (now 24)"}
    ),
    "sft": (["params.trajectories=24"], {"a lower params.trajectories (now 24)"}),
    "dance_opd": (["params.trajectories=1"], set()),
    "multi_reward": (
        ["params.nft.chunk=9", "params.groups=48"], {"a lower params.nft.chunk (now 9)", "a lower params.groups (now 48)"}
    ),
    "cascade": (
        ["params.engine=grpo", "sampler.kernel=flow_sde", "sampler.eta=0.7", "params.groups=2", "params.group_size=4",
         "params.grpo.inner_updates=2"],
        {"a lower params.grpo.chunk (now 96) below 4", "a lower params.groups (now 2)"},
    ),
}  # fmt: skip


def advice(phase: str, spec) -> tuple[set[str], set[str]]:
    """Settings under which the run goes on, and those that make it another."""
    told = str(exhausted(phase, spec)).partition("; ")[2]
    same, _, another = told.partition("; or start a new run with ")
    return ({part for part in text.removeprefix("resume with --set ").split(", ") if part} for text in (same, another))


def exist(spec, names: set[str]) -> None:
    """Every setting named is one that a spec takes, and changes it."""
    for cure in names:
        name = re.search(r"[a-z]+(\.[a-z_]+)+", cure).group(0)
        if name.startswith("scorers."):
            _, task, key = name.split(".")
            assert key == "url" or key in find("task", task).sources
            continue
        lowered = cure.partition("=")[2] or {"compute.resolution": 256}.get(name, 1)
        section, _, rest = name.partition(".")
        plain = spec.model_dump()
        merge(plain, {section: nested(rest, lowered)})
        assert Spec.model_validate(plain) != spec, cure


def nested(dotted: str, value: object) -> object:
    head, _, rest = dotted.partition(".")
    return {head: nested(rest, value) if rest else value}


@pytest.mark.parametrize("name", TRAINING)
def test_advice_names_settings_that_exist_and_help(name: str, sd3_folder: Path) -> None:
    overrides, own = TRAINING[name]
    method, settings = name.split()[0], [o for o in SD3 if "resolution" not in o]
    learns = find("method", method).needs.teachers
    spec = resolve(
        method, ["ocr", "pickscore"], backbone=str(sd3_folder), overrides=[*settings, *overrides],
        teachers="train" if learns else None,
    )  # fmt: skip
    same, another = advice("training", spec)
    assert same == {
        "compute.gradient_checkpointing=true",
        "a lower compute.batch (now all at once)",
        "compute.offload_text_encoders=true",
        "scorers.ocr.url to score elsewhere",
        "a lower scorers.pickscore.batch",
        "scorers.pickscore.device=cpu",
        "scorers.pickscore.url to score elsewhere",
        *([] if learns else ["compute.decode=sliced"]),
    }  # fmt: skip - pictures are decoded in training only where they are rewarded
    assert another == own | {
        "compute.precision=bfloat16",
        "a lower compute.resolution (now the size the model was made for)",
    }
    exist(spec, (same | another) - {c for c in another if "resolution" in c})
    same, _ = advice("evaluation", spec)
    assert {"a lower evaluation.batch (now 96)", "compute.decode=sliced"} <= same
    exist(spec, same)


def test_whole_teachers_can_wait_in_host_memory() -> None:
    """Unless there is only one, which is in use."""
    base = WEIGHTS / "base" / "transformer"
    both = [f"teachers.ocr={base}", f"teachers.pickscore={base}"]
    for sources, named in ((both, True), (both[:1], False), ([*both, "compute.offload_teachers=true"], False)):
        spec = resolve("opd_analytic", ["ocr", "pickscore"], overrides=["device=cuda", *sources])
        same, _ = advice("training", spec)
        assert ("compute.offload_teachers=true" in same) == named


def test_what_is_set_already_or_cannot_help_is_not_named(sd3_folder: Path) -> None:
    settings = [
        "device=cuda", "compute.gradient_checkpointing=true", "compute.batch=1", "compute.decode=sliced",
        "compute.precision=bfloat16", "compute.offload_text_encoders=true", "scorers.ocr.url=http://localhost:1",
        "evaluation.batch=1", "params.trajectories=1",
    ]  # fmt: skip
    spec = resolve("sft", ["ocr"], backbone=str(sd3_folder), overrides=settings, teachers="train")
    told = str(exhausted("training", spec))
    assert told == (
        "out of memory on cuda in training; start a new run with --set a lower compute.resolution (now the size the model was "
        "made for)"
    )
    micro = resolve("sft", ["ocr"], overrides=["device=cuda"])
    same, another = advice("training", micro)
    assert same == {"compute.gradient_checkpointing=true", "a lower compute.batch (now all at once)"}
    assert another == {"a lower params.trajectories (now 24)", "compute.precision=bfloat16"}
    assert "too little" in str(
        exhausted("loading", micro.model_copy(update={"compute": Compute(precision="bfloat16")}))
    )


def test_scoring_pictures_outside_a_run_names_what_its_backbone_has(sd3_folder: Path) -> None:
    def told(compute: Compute, batch: int, backbone: str) -> str:
        with pytest.raises(BenchError) as caught, memory_of(compute, batch, "cuda", backbone):
            raise torch.OutOfMemoryError("full")
        return str(caught.value)

    assert told(Compute(), 96, "micro").endswith("try --set with compute.batch=48, compute.precision=bfloat16")
    assert "too little" in told(Compute(precision="bfloat16"), 1, "micro")
    real = told(Compute(), 2, str(sd3_folder))
    assert "compute.batch=1, compute.precision=bfloat16, compute.decode=sliced, a lower compute.resolution" in real
    assert "compute.decode" not in told(Compute(decode="tiled"), 2, str(sd3_folder))
