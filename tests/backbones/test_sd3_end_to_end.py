"""Training, resuming and scoring on a tiny random SD3 pipeline with every photographic scorer, all from disk."""

import json
from pathlib import Path

import pytest
import torch

from bench.backbones import flow
from bench.backbones.pipeline.backbone import PipelineBackbone
from bench.config.resolve import describe, resolve
from bench.errors import BenchError
from bench.scoring.folders import load, write
from bench.training.execute import Session, execute
from methods.opd_analytic import OpdAnalytic
from tasks.geneval.task import GenEval
from tests.commands import bench
from tests.small_scorers import small_scorers
from tests.tiny_pipelines import save_teachers

TASKS = ("geneval", "ocr", "pickscore")


@pytest.fixture(scope="module")
def settings(sd3_folder: Path, photo_scorers: dict, tmp_path_factory) -> dict:
    """Overrides that name teachers, scorers and prompts."""
    home = tmp_path_factory.mktemp("photo")
    save_teachers(str(sd3_folder), home / "teachers", TASKS)
    overrides = [
        f"scorers={json.dumps(photo_scorers)}", "evaluation.steps=1", "evaluation.split=validation",
        "evaluation.points=[]", "sampler.steps=2", "params.timestep_fraction=1", "params.trajectories=2", "lora.rank=2",
        "lora.alpha=4", "ema.every=1", "checkpoint_every=1",
    ]  # fmt: skip
    found = {"teachers": str(home / "teachers"), "overrides": overrides, "backbone": str(sd3_folder)}
    return found | {"scorers": photo_scorers}


def test_distillation_on_photographs_from_end_to_end(settings: dict, small, tmp_path: Path, monkeypatch) -> None:
    overrides = [*settings["overrides"], "budget.updates=2"]
    spec = resolve(
        "opd_analytic", list(TASKS), overrides=overrides, **{key: settings[key] for key in ("teachers", "backbone")}
    )
    whole = execute(spec, Session(tmp_path / "whole" / "results"))
    assert set(whole["models"]) == {"student", "base", *(f"teacher {task}" for task in TASKS)}
    assert {"official", "strict", "partial"} <= set(whole["models"]["student"]["geneval"]["rows"])
    backbone = describe(settings["backbone"]).load("cpu")
    session = Session(tmp_path / "cut" / "results")
    with monkeypatch.context() as patch:  # killed in the second update
        patch.setattr(OpdAnalytic, "after_update", _fail_second)
        with pytest.raises(BenchError, match="the power went"):
            execute(spec, session)
    resumed = execute(spec, session)
    assert resumed["models"] == whole["models"]
    for name, root in (("whole", tmp_path / "whole"), ("cut", tmp_path / "cut")):
        backbone.adapters.load(name, root / "results" / whole["folder"] / "adapter")
    assert backbone.adapters.delta_norm("whole") > 0
    assert all(map(torch.equal, backbone.adapters.parameters("whole"), backbone.adapters.parameters("cut")))


@pytest.mark.parametrize("batches", ["mixed", "alternate"])
def test_encoders_that_are_moved_encode_for_later_updates_too(
    settings: dict, small, tmp_path: Path, monkeypatch, batches: str
) -> None:
    """And for the next batches of an evaluation; to the same bits."""
    more = ["budget.updates=6", "compute.offload_text_encoders=true", "evaluation.batch=1", f"params.batches={batches}"]
    more.append(f"scorers={json.dumps(no_geneval(settings))}")
    chosen = {key: settings[key] for key in ("teachers", "backbone")}
    spec = resolve("opd_analytic", ["ocr", "pickscore"], overrides=[*settings["overrides"][1:], *more], **chosen)
    moved: dict[str, list[int]] = {}
    encode = PipelineBackbone._encode
    for how, ahead in (("each", 0), ("ahead", flow.AHEAD)):
        counts = moved.setdefault(how, [])
        monkeypatch.setattr(flow, "AHEAD", ahead)
        monkeypatch.setattr(
            PipelineBackbone,
            "_encode",
            lambda self, prompts, counts=counts: counts.append(len(prompts)) or encode(self, prompts),
        )
        execute(spec, Session(tmp_path / how / "results"))
    assert sum(moved["each"]) <= sum(moved["ahead"]) <= 20 + 2 + 1  # of each split's prompts; drawn ahead of the end
    # Two prompts of the validation split, then training: what is foreseen is known from a task's second draw on.
    assert len(moved["ahead"]) <= 6 < len(moved["each"])
    made = [next(tmp_path.glob(f"{how}/results/*/adapter/adapter_model.safetensors")).read_bytes() for how in moved]
    assert made[0] == made[1]


def _fail_second(self, lab) -> None:
    if lab.step == 1:
        raise BenchError("the power went")


@pytest.mark.slow
def test_the_published_recipe_from_the_command_line(settings: dict, clip_folder: Path, tmp_path: Path) -> None:
    """`bench run --preset diffusionopd-sd35` with less of everything; its pictures are then scored by every scorer."""
    shrunk = [
        *settings["overrides"], "device=cpu", "budget.updates=1", "compute.resolution=8", "compute.precision=bfloat16",
        "evaluation.split=test", "evaluation.pictures=true", "evaluation.batch=700", "params.chunk=1",
    ]  # fmt: skip
    words = ["run", "--preset", "diffusionopd-sd35", "--backbone", settings["backbone"], "--tasks", "ocr,pickscore"]
    words += ["--teachers", settings["teachers"], *(part for s in shrunk for part in ("--set", s))]
    words = [
        w if w != f"scorers={json.dumps(settings['scorers'])}" else f"scorers={json.dumps(no_geneval(settings))}"
        for w in words
    ]
    done = bench(words, tmp_path, small_scorers)
    assert done.returncode == 0, done.stderr
    assert "student" in done.stdout
    (run,) = (tmp_path / "results" / "runs").glob("opd_analytic-*")
    spec = json.loads((run / "spec.json").read_text())["spec"]
    assert spec["teacher_guidance"] == {"ocr": 4.5, "pickscore": 4.5}
    again = bench(words, tmp_path, small_scorers)
    assert "already finished" in again.stderr
    made = run / "pictures" / "ocr"
    assert len(list(made.glob("*/samples/*.png"))) == 3
    record = json.loads((made / "00000" / "metadata.jsonl").read_text())
    assert record["prompt"].startswith("a test sign 0")
    clip, head = f"={clip_folder}", tmp_path / "head.pth"
    torch.save(
        {f"layers.{i}.{k}": torch.randn(*((b, a) if k == "weight" else (b,))) for i, a, b in
         ((0, 16, 8), (2, 8, 6), (4, 6, 4), (6, 4, 2), (7, 2, 1)) for k in ("weight", "bias")},
        head,
    )  # fmt: skip
    for task, sources in {
        "ocr": [],
        "pickscore": ["model" + clip, "processor" + clip],
        "clipscore": ["model" + clip, "convention=30"],
        "aesthetic": ["model" + clip, f"head={head}"],
        "hpsv2": ["model" + clip, "processor" + clip],
    }.items():
        done = bench(
            ["score", task, str(made), *(w for s in sources for w in ("--set", f"scorers.{task}.{s}"))],
            tmp_path,
            small_scorers,
        )
        assert done.returncode == 0, (task, done.stderr)
        assert "3 images" in done.stdout
    assert sum(1 for _ in made.glob("results*.jsonl")) == 5
    detector = [f"converted={settings['scorers']['geneval']['converted']}", "colours" + clip]
    detector = [w for s in detector for w in ("--set", f"scorers.geneval.{s}")]
    done = bench(["score", "geneval", str(made), *detector], tmp_path)
    assert (done.returncode, "00000/metadata.jsonl: " in done.stderr) == (2, True)
    prompts = GenEval("photo").prompts("test")[:8:4]
    write(
        tmp_path / "made",
        prompts,
        torch.stack([load(p) for p in sorted(made.glob("*/samples/*.png"))[:2]]),
        [(0, 0), (1, 0)],
    )
    done = bench(["score", "geneval", "made", *detector], tmp_path, small_scorers)
    assert done.returncode == 0, done.stderr
    assert "hf-converted-" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "made" / "results.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [p.text for p in prompts]
    assert all(isinstance(line["correct"], bool) for line in lines)


def no_geneval(settings: dict) -> dict:
    """Scorers without GenEval's: its 2,212 official test pictures are too many here."""
    return {task: sources for task, sources in settings["scorers"].items() if task != "geneval"}
