"""Several processes on one run (gloo, two on this machine) do what one process does."""

import json
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config.resolve import describe, resolve
from bench.config.spec import Spec
from bench.registry import find
from bench.store.run import read_checkpoint
from bench.system.workers import Workers, connect
from bench.training.execute import Session, execute
from tests.commands import Command, environments, together
from tests.folders import data, needs_data, shared
from tests.once import once

pytestmark = pytest.mark.usefixtures("few_prompts")

# With so large an eps AdamW's step is proportional to the gradient: a small eps makes a step of rounding's sign.
COMMON = [
    "budget.updates=2",
    "optimizer.eps=1",
    "optimizer.lr=1",
    "evaluation.steps=1",
    "evaluation.points=[]",
    "evaluation.split=validation",
]
RL = ["params.groups=5", "params.group_size=4"]
NOISY = ["sampler.kernel=cps", "sampler.eta=0.8"]
# Odd numbers of prompts for two processes. A clip range that nothing reaches: at its edge a rounding is a gradient more or
# less. The second inner update of a policy gradient magnifies rounding (another number of threads moves it as much).
SETTINGS = {
    "opd_analytic": ["params.trajectories=3", *NOISY],
    "opd_ppo": ["params.trajectories=3"],
    "dance_opd": ["params.trajectories=3"],
    "off_policy": ["params.trajectories=3", "params.combine=pcgrad", "params.allocation=by_loss"],
    "sft": ["params.trajectories=3", "params.combine=upgrad"],
    "opd_reward": [*RL, "params.nft.kl=0.1"],
    "self_opd": ["params.trajectories=3", "params.branches=3", "params.steps=1", *NOISY, "optimizer.lr=4"],
    "flow_matching": ["params.batch=5", "params.combine=pcgrad"],
    "offline_dpo": ["params.batch=5", "params.chunk=2", "params.beta=100"],
    "draft_k": ["params.trajectories=3", "params.last=2", *NOISY],
    "refl": ["params.trajectories=3", "params.late=0.5"],
    "multi_reward": [*RL, "budget.nfe=3000", "params.combine=nash_mtl"],
    "cascade": [
        *RL,
        "params.engine=grpo",
        "params.groups=6",
        "params.grpo.inner_updates=2",
        "params.grpo.clip=10",
        "optimizer.lr=0.05",
    ],
    "multi_reward full": [*RL, "full_finetuning=true", "optimizer.lr=0.1"],
    "multi_reward nft": [*RL, "params.groups=6", "params.nft.inner_updates=2", "optimizer.lr=0.05"],
    "multi_reward drawn": [*RL, "params.preference=drawn", "params.divisions=1"],
    "multi_reward dgpo": [*RL, "params.engine=dgpo", "params.dgpo.clip=10"],
    "multi_reward crd": [*RL, "params.engine=crd"],
    "multi_reward awm": [*RL, "params.engine=awm"],
    "multi_reward flow_dppo": [*RL, *NOISY, "params.groups=6", "params.engine=flow_dppo"],
    "multi_reward grpo": [*RL, *NOISY, "params.engine=grpo", "params.grpo.clip=10", "params.grpo.window.size=1"],
    "multi_reward dpo": [*RL, "params.engine=dpo", "params.dpo.timesteps=2"],
    "multi_reward tempflow": [*RL, *NOISY, "optimizer.lr=4", "params.engine=tempflow", "params.tempflow.clip=10"],
}
"""Method, or method and what is tried with it -> settings."""
TASKS_OF = {"cascade": ["ocr", "geneval"], "draft_k": ["pickscore"], "refl": ["pickscore"]}


def make(specs: str) -> None:
    """In each of several processes: the runs of some specs, and no command after it."""
    workers = connect("cpu")
    for spec in json.loads(Path(specs).read_text()):
        execute(Spec.model_validate(spec), Session(Path("results"), workers))
    sys.exit()


def spec_of(name: str, pictures: Path) -> Spec:
    method = name.partition(" ")[0]
    tasks = TASKS_OF.get(method, ["ocr", "pickscore"])
    of_user = data(pictures, tuple(tasks)) if needs_data(method) else []
    return resolve(method, tasks, overrides=[*COMMON, *SETTINGS[name], *of_user])


def made_by_two(specs: list[Spec], folder: Path) -> None:
    """Let two processes make runs together, in the folder's `results`."""
    (folder / "specs.json").write_text(json.dumps([spec.model_dump(mode="json") for spec in specs]))
    ended = together([], folder, make, ("specs.json",))
    assert [done.returncode for done in ended] == [0, 0], "\n".join(done.stderr[-3000:] for done in ended)


def check_scores(one: dict, two: dict) -> None:
    """Two summaries have every prompt once, in order, with about the same rewards."""
    for model, tasks in one["models"].items():
        for task, row in tasks.items():
            other = two["models"][model][task]
            assert other["strata"] == row["strata"]
            assert other["rows"]["reward"] == pytest.approx(row["rows"]["reward"], abs=0.02)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the user's pictures."""
    return shared(tmp_path_factory)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """Results of every method's run by two processes."""
    specs = [spec_of(method, pictures) for method in SETTINGS]
    return once(tmp_path_factory, "pair", lambda folder: made_by_two(specs, folder)) / "results"


def norm_of_update(tensors: dict[str, torch.Tensor]) -> float:
    """How far a checkpoint's student is from its start: an adapter's B starts at 0, all weights start at the base's."""
    own = {n.removeprefix("adapter/student/"): t for n, t in tensors.items() if n.startswith("adapter/student/")}
    base = describe("micro").load("cpu").transformer.state_dict()
    moved = [t if "lora_B" in n else t - base[n] for n, t in own.items() if "lora_B" in n or n in base]
    return float(torch.cat([change.flatten() for change in moved]).norm())


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_two_processes_update_as_one_does(pair: Path, pictures: Path, tmp_path: Path, method: str) -> None:
    alone = execute(spec_of(method, pictures), Session(tmp_path / "results"))
    folders = [root / alone["folder"] for root in (tmp_path / "results", pair)]
    (one, one_state), (two, two_state) = (read_checkpoint(f / "checkpoint.safetensors") for f in folders)
    for name in one:
        if name.startswith("adapter/"):
            assert (one[name] - two[name]).abs().max() < 1e-6, name
    adapters = [torch.cat([t[n].flatten() for n in one if n.startswith("adapter/student")]) for t in (one, two)]
    assert norm_of_update(one) > 1e-3
    assert (adapters[0] - adapters[1]).norm() < 1e-6 * adapters[0].norm()
    rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    assert len(rows[0]) == len(rows[1])
    for mine, theirs in zip(*rows):
        assert mine["evaluations"] == theirs["evaluations"]
        numbers = {k: v for k, v in mine.items() if k not in ("evaluations", "seconds")}
        assert numbers == pytest.approx({k: theirs[k] for k in numbers}, rel=1e-4, abs=1e-7)
    check_scores(*(json.loads((f / "summary.json").read_text()) for f in folders))
    assert two_state["step"] == one_state["step"]


@pytest.mark.slow
def test_the_command_resumes_and_only_one_process_speaks(tmp_path: Path) -> None:
    words = [
        "run", "--method", "opd_analytic", "--tasks", "ocr", "--results", "results",
        *(part for s in (*COMMON, "params.trajectories=3", "checkpoint_every=1") for part in ("--set", s)),
    ]  # fmt: skip
    first = together(words, tmp_path)
    assert [done.returncode for done in first] == [0, 0], first[0].stderr
    assert "gain recovered" in first[0].stdout
    assert not first[1].stdout
    (folder,) = (tmp_path / "results").glob("opd_analytic-*")
    before = (folder / "checkpoint.safetensors").read_bytes()
    (folder / "summary.json").unlink()
    assert [done.returncode for done in together(words, tmp_path)] == [0, 0]
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    refused = together([*words, "--set", "params.trajectories=1"], tmp_path)
    assert all(done.returncode == 2 and "2 processes cannot share 1 prompts" in done.stderr for done in refused)


FORGETFUL = {
    "prompts": "without lab.prompts",
    "rows": "draws from lab.generator directly",
    "global": "global random generator",
    "prepare": "global random generator",
    "apart": "hold different students before the first update",
    "state": "hold different values in the method's state",
    "numpy": "global random generator",
}


def forgets(kind: str) -> None:
    """Let this process's method forget in some way that there are others."""
    from methods.opd_analytic import OpdAnalytic, Start

    honest = OpdAnalytic.losses

    def collect(self, lab, task):
        own = lambda: lab.tasks[task].sample(4, lab.numpy_generator("prompts", task))
        conditioning = lab.encode(own() if kind == "prompts" else lab.prompts(task, 4))
        return Start(lab.backbone.noise(len(conditioning), lab.generator("noise", task)), conditioning)

    def losses(self, lab, task, start):
        if kind == "rows":
            torch.randn(len(start.noise), generator=lab.generator("mine", task))
        if kind == "global":
            torch.rand(1)
        if kind == "numpy":
            np.random.rand()
        yield from honest(self, lab, task, start)

    def prepare(self, lab):
        if kind == "prepare":
            np.random.rand()
        if kind == "apart":  # drawn from a generator of its own, which nobody watches
            for tensor in lab.backbone.adapters.parameters("student"):
                tensor += np.random.default_rng().normal()

    OpdAnalytic.collect, OpdAnalytic.losses, OpdAnalytic.prepare = collect, losses, prepare
    if kind == "state":
        OpdAnalytic.state = lambda self: {"mine": torch.tensor(float(os.getpid()))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORGETFUL)
def test_a_method_that_forgets_the_other_processes_is_refused(tmp_path: Path, kind: str) -> None:
    """In silence its gradient would be twice too large, or another one than one process's."""
    settings = [w for s in (*COMMON, "params.trajectories=4") for w in ("--set", s)]
    words = ["run", "--method", "opd_analytic", "--tasks", "ocr", *settings]
    ended = together(words, tmp_path, forgets, (kind,))
    told = FORGETFUL[kind]
    assert [done.returncode for done in ended] == [2, 2], ended[0].stderr[-2000:]
    assert all(told in done.stderr and "Traceback" not in done.stderr for done in ended)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [1, 7, 8, 553])
def test_shares_cover_everything_once(count: int, total: int) -> None:
    shares = [Workers(i, count).shard(total) for i in range(count)]
    assert [row for share in shares for row in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert max(map(len, shares)) == Workers(0, count).most(total)


def test_all_training_methods_are_tried() -> None:
    from bench.registry import registered

    trained = {name for name in registered("method") if find("method", name).trains} - {"single_task", "imitate"}
    assert {name.partition(" ")[0] for name in SETTINGS} == trained


def test_parts_of_a_batch_draw_what_the_whole_draws() -> None:
    from bench.sampler.draws import Rows, normal
    from bench.sampler.generator import RowGenerator

    def drawn(rows: Rows | None, count: int) -> torch.Tensor:
        generator = RowGenerator()
        generator.manual_seed(3)
        generator.rows = rows
        return normal((count, 2, 2), generator, "cpu")

    whole = drawn(None, 12)
    assert torch.equal(drawn(Rows(1, 4, 6), 6), whole[2:8])  # two pictures a prompt
    assert torch.equal(drawn(Rows(6, 12, 12).part(2, 5), 3), whole[8:11])


def second_loses() -> None:
    """Let the second process's loss be no number."""
    from methods.opd_analytic import OpdAnalytic

    honest = OpdAnalytic.losses

    def losses(self, lab, task, experience):
        for piece in honest(self, lab, task, experience):
            yield piece * float("nan") if os.environ["RANK"] == "1" else piece

    OpdAnalytic.losses = losses


def test_a_port_that_another_program_uses_is_named(tmp_path: Path) -> None:
    first = environments(2)[0]
    with socket.socket() as taken:
        taken.bind(("", int(first["MASTER_PORT"])))
        taken.listen()
        said = Command(["run", "--method", "opd_analytic", "--tasks", "ocr"], tmp_path, environment=first).completed()
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert f"cannot meet at 127.0.0.1:{first['MASTER_PORT']}" in said.stderr
    assert "launch with another (torchrun --master-port" in said.stderr


@pytest.mark.slow
def test_one_processs_error_ends_them_all(tmp_path: Path) -> None:
    """Also with more seeds to come: going on with the next one would wait for a process that is still in this one."""
    settings = [w for s in (*COMMON, "params.trajectories=2") for w in ("--set", s)]
    words = ["run", "--method", "opd_analytic", "--tasks", "ocr", "--seeds", "0-1", *settings]
    ended = together(words, tmp_path, second_loses)
    assert all(done.returncode not in (0, None) for done in ended)
    assert "the loss of task 'ocr' is nan" in ended[1].stderr


@pytest.mark.parametrize("command", ["eval --adapter base --tasks ocr", "probe --methods opd_analytic --tasks ocr"])
def test_a_command_that_would_do_all_in_every_process_is_refused(monkeypatch, capsys, command: str) -> None:
    from bench.cli.app import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["bench", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "works in one process, not 2" in capsys.readouterr().err


def test_several_processes_are_not_given_one_gpu(monkeypatch) -> None:
    from bench.errors import UsageError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="device=cuda, not cuda:0"):
        connect("cuda:0")


@pytest.mark.parametrize("inner_updates", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_inner_updates_train_the_same_prompts_whoever_has_them(inner_updates: int, processes: int) -> None:
    from bench.sampler.draws import Rows
    from methods.rl.inner_updates import inner_rows

    groups, size = 6, 4
    for inner in range(inner_updates):
        trained = []
        for index in range(processes):
            share = Workers(index, processes).shard(groups)
            rows = Rows(share.start, share.stop, groups) if processes > 1 else None
            mine, whole = inner_rows(len(share) * size, rows, inner_updates, inner)
            trained += [share.start * size + int(row) for row in mine]
            assert whole == groups * size // inner_updates
        assert trained == list(range(inner * whole, (inner + 1) * whole))
