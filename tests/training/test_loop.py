"""The loop's promises: divergence stops it, EMA never touches live weights, locks, teachers' hashes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api.lab import EMA, STUDENT
from bench.api.task import Scores
from bench.backbones.adapters import read_adapter
from bench.config.resolve import describe, resolve
from bench.errors import BenchError, MissingError, UsageError
from bench.registry import find, registered
from bench.sampler.rollout import Sampler
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS
from bench.scoring.loading import load_tasks
from bench.store.run import Run, read_checkpoint
from bench.training.evaluate import evaluate
from bench.training.execute import Session, execute
from bench.training.loop import Loop
from methods.opd_analytic import OpdAnalytic
from tasks.ocr.task import Ocr
from tests.folders import data, needs_data
from tests.training.test_resume import SETTINGS, TASKS_OF

pytestmark = pytest.mark.usefixtures("few_prompts")

QUICK = [
    "params.trajectories=2",
    "evaluation.steps=1",
    "checkpoint_every=1",
    "budget.updates=4",
    "evaluation.points=[]",
]


def quick(*more: str, tasks: tuple[str, ...] = ("ocr",)):
    return resolve("opd_analytic", list(tasks), overrides=[*QUICK, *more])


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "results")


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_divergence_stops_with_step_and_cause(session: Session, monkeypatch, poison: str) -> None:
    honest = OpdAnalytic.losses

    def poisoned(self, lab, task, experience):
        for piece in honest(self, lab, task, experience):
            if lab.step == 2 and poison == "loss":
                piece = piece * float("nan")
            elif lab.step == 2:
                piece.register_hook(lambda grad: grad * float("inf"))
            yield piece

    monkeypatch.setattr(OpdAnalytic, "losses", poisoned)
    with pytest.raises(BenchError, match=r"update 3: the (loss of task 'ocr'|gradient norm) is .*last good checkpoint"):
        execute(quick(), session)
    (folder,) = (p for p in session.root.iterdir() if p.name.startswith("opd"))
    tensors, state = read_checkpoint(folder / "checkpoint.safetensors")
    assert state["step"] == 2
    assert all(torch.isfinite(t).all() for t in tensors.values())
    monkeypatch.setattr(OpdAnalytic, "losses", honest)
    assert execute(quick(), session)["updates"] == 4


@pytest.mark.parametrize("name", [n for n in SETTINGS if n in registered("method") and n not in ("opd_analytic", "merge")])
def test_every_method_stops_at_a_loss_that_is_not_finite(
    session: Session, tmp_path: Path, monkeypatch, name: str
) -> None:
    cls = find("method", name)
    honest = cls.losses

    def poisoned(self, lab, task, experience):
        for piece in honest(self, lab, task, experience):
            yield piece * float("nan") if lab.step == 1 else piece

    monkeypatch.setattr(cls, "losses", poisoned)
    short = ["budget.updates=2", "evaluation.steps=1", "evaluation.points=[]", "checkpoint_every=1"]
    task = TASKS_OF.get(name, "ocr").partition(",")[0]
    of_user = data(tmp_path / "pictures", (task,)) if needs_data(name) else []
    spec = resolve(name, [task], overrides=[*SETTINGS[name], *short, *of_user])
    with pytest.raises(BenchError, match=rf"update 2: the loss of task '{task}' is nan.*last good checkpoint"):
        execute(spec, session)


def test_a_reward_that_is_not_finite_stops_the_run(session: Session, monkeypatch) -> None:
    import numpy as np

    broken = lambda self, images, prompts: Scores(np.full(len(prompts), np.nan), {"exact": np.zeros(len(prompts))})
    monkeypatch.setattr(Ocr, "score", broken)
    spec = resolve("single_task", ["ocr"], overrides=["params.groups=1", "params.group_size=2", "budget.updates=1"])
    with pytest.raises(BenchError, match="not finite"):
        execute(spec, session)


def test_finished_run_returns_at_once(session: Session, monkeypatch) -> None:
    spec = quick()
    summary = execute(spec, session)
    monkeypatch.setattr(Loop, "train", lambda *_: pytest.fail("trained again"))
    assert execute(spec, session) == summary


def test_a_student_of_layers_that_are_not_there_leaves_no_run(session: Session) -> None:
    with pytest.raises(UsageError, match=r"unknown layer in lora\.targets 'attn\.to_qq'; did you mean 'attn\.to_q'"):
        execute(quick("lora.targets=[attn.to_qq]"), session)
    assert not session.root.exists()


def test_two_processes_on_one_run_are_refused(session: Session) -> None:
    spec = quick()
    run = Run(session.root, spec, describe("micro").fingerprint())
    with run.lock(), pytest.raises(UsageError, match="is in use by process"):
        execute(spec, session)


def test_changed_teacher_stops_a_resume(session: Session, tmp_path: Path, micro, monkeypatch) -> None:
    from bench.backbones.adapters import Shape

    teacher = tmp_path / "teacher"

    def write(seed: int) -> None:
        name = f"t{seed}"
        micro.adapters.add(name, Shape(2, 4.0), seed=seed)
        with torch.no_grad():
            for parameter in micro.adapters.parameters(name):
                parameter.add_(0.01)
        micro.adapters.save(name, teacher)

    write(1)
    spec = quick(f"teachers.ocr={teacher}")
    save = Loop._save
    monkeypatch.setattr(Loop, "_save", lambda self: (save(self), (_ for _ in ()).throw(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        execute(spec, session)
    monkeypatch.setattr(Loop, "_save", save)
    write(2)
    with pytest.raises(UsageError, match="a different adapter or teacher for ocr"):
        execute(spec, session)
    write(1)
    execute(spec, session)
    write(2)  # nor is a finished run shown as one of this teacher's
    with pytest.raises(UsageError, match="a different adapter or teacher for ocr"):
        execute(spec, session)


def test_folder_of_teachers_holds_one_a_task() -> None:
    spec = resolve("opd_analytic", ["ocr", "geneval"], teachers="mine")
    assert spec.teachers == {"ocr": "mine/ocr", "geneval": "mine/geneval"}


def test_teacher_equal_to_the_base_is_refused(session: Session, tmp_path: Path, micro) -> None:
    from bench.backbones.adapters import Shape

    micro.adapters.add("null", Shape(2, 4.0))
    micro.adapters.save("null", tmp_path / "null")
    with pytest.raises(UsageError, match="equals the base"):
        execute(quick(f"teachers.ocr={tmp_path / 'null'}"), session)


def test_evaluating_the_ema_leaves_the_live_weights_alone(micro) -> None:
    """On CPU a 'temporary copy' made by .cpu() aliases the live weights; ours is another adapter."""
    from bench.backbones.adapters import Shape

    for name in (STUDENT, EMA):
        micro.adapters.add(name, Shape(2, 4.0), trainable=name == STUDENT)
    with torch.no_grad():
        for parameter in micro.adapters.parameters(STUDENT):
            parameter.add_(1.0)
    before = {name: micro.adapters.state(name) for name in (STUDENT, EMA)}
    task = load_tasks(("ocr",), "micro")["ocr"]
    evaluate(micro, task, EMA, Sampler(make_schedule(1), KERNELS["ode"]), 1.0)
    for name, state in before.items():
        for key, value in micro.adapters.state(name).items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=0)
    student = {p.data_ptr() for p in micro.adapters.parameters(STUDENT)}
    assert not student & {p.data_ptr() for p in micro.adapters.parameters(EMA)}


def test_budget_in_evaluations_is_kept_to_whole_updates(session: Session) -> None:
    summary = execute(quick("budget={nfe: 100}", "sampler.steps=10"), session)
    per_update = 2 * 9 * 4
    assert summary["cost"]["evaluations"]["training"] == 2 * per_update
    assert summary["updates"] == 2


def test_evaluation_does_not_depend_on_the_batch(micro) -> None:
    task = load_tasks(("ocr",), "micro")["ocr"]
    sampler = Sampler(make_schedule(2), KERNELS["ode"])
    small, large = (evaluate(micro, task, None, sampler, 1.0, "validation", batch) for batch in (13, 96))
    assert (small.rows["edit"] == large.rows["edit"]).mean() > 0.97  # kernels round differently by batch size


def test_summary_names_every_model_and_task(session: Session) -> None:
    summary = execute(quick(tasks=("geneval", "ocr")), session)
    assert set(summary["models"]) == {"base", "teacher geneval", "teacher ocr", "student"}
    assert all(set(tasks) == {"geneval", "ocr"} for tasks in summary["models"].values())
    assert json.loads(json.dumps(summary)) == summary


def test_interference_along_training_leaves_the_run_as_it_is(session: Session, tmp_path: Path) -> None:
    plain = quick("evaluation.points=[0.5]", tasks=("ocr", "geneval"))
    probed = quick("evaluation.points=[0.5]", "probes.interference=1", tasks=("ocr", "geneval"))
    summaries = [execute(spec, session) for spec in (plain, probed)]
    folders = [session.root / s["folder"] for s in summaries]
    rows = [json.loads(line) for line in (folders[1] / "probes.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert -1 <= rows[0]["interference"]["ocr | geneval"]["all"] <= 1
    adapters = [(f / "adapter" / "adapter_model.safetensors").read_bytes() for f in folders]
    assert adapters[0] == adapters[1]


def test_a_prompts_encoding_does_not_depend_on_earlier_ones(micro) -> None:
    from bench.backbones.embeddings import Embeddings

    prompts = ["a photo of a red ring", "a photo of two circles", 'a sign that says "ABC"']
    micro._encoded = Embeddings(None, micro.device)
    micro.encode(prompts[1:])
    together = micro.encode(prompts)
    micro._encoded = Embeddings(None, micro.device)
    alone = [micro.encode([p]) for p in prompts]
    for i, one in enumerate(alone):
        assert torch.equal(together[i : i + 1]["sequence"], one["sequence"])
        assert torch.equal(together[i : i + 1]["pooled"], one["pooled"])


def test_settings_are_chosen_on_other_prompts_than_they_are_reported_on(session: Session) -> None:
    """evaluation.split moves the student, the references and their cache together."""
    length = {}
    for split in ("validation", "test"):
        summary = execute(quick("budget.updates=1", f"evaluation.split={split}"), session)
        assert summary["split"] == split
        expected = [p.stratum for p in load_tasks(("ocr",), "micro")["ocr"].prompts(split)]
        for model in summary["models"].values():
            assert model["ocr"]["strata"] == expected
        length[split] = len(expected)
    assert length["validation"] != length["test"]


def test_students_are_evaluated_at_the_guidance_they_train_at() -> None:
    assert quick("sampler.guidance=2").evaluation.guidance == 2
    assert quick("sampler.guidance=2", "evaluation.guidance=1").evaluation.guidance == 1
    assert quick() == quick("evaluation.guidance=1")


def test_a_runs_adapter_teaches_at_the_guidance_of_its_run(session: Session) -> None:
    settings = ["params.groups=2", "params.group_size=2", "budget.updates=1", "evaluation.steps=1"]
    taught = resolve("single_task", ["ocr"], overrides=[*settings, "evaluation.guidance=3"])
    folder = session.root / execute(taught, session)["folder"] / "adapter"
    assert quick(f"teachers.ocr={folder}").teacher_guidance == {"ocr": 3}


def test_scoring_of_held_out_pictures_is_not_charged_to_training(session: Session) -> None:
    """A budget in seconds counts training and the scoring of its rewards."""
    seconds = execute(quick(), session)["cost"]["seconds"]
    assert "scoring" not in seconds
    assert seconds["held-out scoring"] > 0


def test_what_a_merge_loses_is_recorded(session: Session) -> None:
    spec = resolve("merge", ["geneval", "ocr"], overrides=["lora.rank=8", "evaluation.steps=1"])
    summary = execute(spec, session)
    (row,) = Run(session.root, spec, describe("micro").fingerprint()).rows("metrics.jsonl")
    assert summary["updates"] == row["step"] == 0
    assert 0 < row["energy_kept"] < 1


def test_a_student_starts_from_an_adapter(session: Session) -> None:
    folder = describe("micro").teachers / "geneval"
    start = [f"lora.start={folder}", "lora.rank=32", "lora.alpha=64"]
    summary = execute(quick(*start, "optimizer.lr=1e-12", "ema.every=1"), session)
    tensors, _ = read_checkpoint(session.root / summary["folder"] / "checkpoint.safetensors")
    teacher = read_adapter(folder)[1]
    for key, value in teacher.items():
        torch.testing.assert_close(tensors[f"adapter/student/{key}"], value, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match=r"rank 32 and alpha 64: set lora\.rank=32"):
        execute(quick(f"lora.start={folder}", "lora.rank=4"), session)
    with pytest.raises(UsageError, match=r"merge would overwrite the weights of lora\.start"):
        quick(*start, "params.start=merge")


def test_half_precision_training_scales_its_loss_and_resumes(session: Session, tmp_path: Path, monkeypatch) -> None:
    """An overflow leaves a step out and lowers the scale; both survive a kill."""
    honest = OpdAnalytic.losses

    def overflowing(self, lab, task, experience):
        for piece in honest(self, lab, task, experience):
            if lab.step == 1:
                piece.register_hook(lambda grad: grad * float("inf"))
            yield piece

    monkeypatch.setattr(OpdAnalytic, "losses", overflowing)
    spec = quick("compute.precision=float16", tasks=("ocr",))
    whole = execute(spec, session)
    rows = [json.loads(x) for x in (session.root / whole["folder"] / "metrics.jsonl").read_text().splitlines()]
    assert ["grad_norm" in row for row in rows] == [True, False, True, True]
    assert rows[1]["skipped_steps"] == 1
    before, state = read_checkpoint(session.root / whole["folder"] / "checkpoint.safetensors")
    assert state["scaler"]["scale"] == 2**15
    cut = Session(tmp_path / "cut" / "results")
    save = Loop._save

    def kill_after_two(self) -> None:
        save(self)
        if self.step == 2:
            raise BenchError("killed")

    monkeypatch.setattr(Loop, "_save", kill_after_two)
    with pytest.raises(BenchError, match="killed"):
        execute(spec, cut)
    monkeypatch.setattr(Loop, "_save", save)
    execute(spec, cut)
    after, _ = read_checkpoint(cut.root / whole["folder"] / "checkpoint.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert before["adapter/student/transformer_blocks.0.attn.to_q.lora_B.weight"].dtype == torch.float32


def test_what_scorers_lack_is_found_out_before_training(session: Session, monkeypatch) -> None:
    def without(self, images_BCHW, prompts):
        raise MissingError("no weights")

    with monkeypatch.context() as patch:
        patch.setattr(Ocr, "score", without)
        with pytest.raises(MissingError, match="no weights"):
            execute(quick(), session)
    rewards_alone = lambda self, images, prompts: Scores(np.zeros(len(prompts)), {"edit": np.zeros(len(prompts))})
    with monkeypatch.context() as patch:
        patch.setattr(Ocr, "score", rewards_alone)
        with pytest.raises(BenchError, match="gives edit, not the headline metric 'exact'"):
            execute(quick(), session)
    assert not list(session.root.glob("*/metrics.jsonl"))


def test_a_failed_evaluation_loses_no_training_and_goes_on_in_other_portions(session: Session, monkeypatch) -> None:
    spec = quick("checkpoint_every=100")
    honest = Loop.evaluate

    def no_memory(self, *_, **__):
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "evaluate", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            execute(spec, session)
    trained = []
    update = Loop._update
    monkeypatch.setattr(Loop, "_update", lambda self, share: trained.append(share) or update(self, share))
    monkeypatch.setattr(Loop, "evaluate", honest)
    other = quick("checkpoint_every=100", "compute.batch=7", "evaluation.batch=5", "compute.decode=sliced")
    summary = execute(other, session)
    assert (summary["updates"], trained) == (4, [])
    assert summary == execute(spec, session)
    precise = quick("checkpoint_every=100", "compute.precision=bfloat16")
    assert precise.digest("x") != other.digest("x") == spec.digest("x")
