"""Wrong use: exit 2, one clear line, nothing written. In process, through the real entry point."""

import sys
from pathlib import Path

import pytest

from bench.cli.app import main

RUN = ["run", "--method", "opd_analytic"]
GRPO = ["run", "--method", "multi_reward", "--set", "params.engine=grpo", "--set", "params.groups=4", "--set"]


def call(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, capsys.readouterr().err


CASES = {
    "unknown method": (["run", "--method", "opd_analitic"], "did you mean 'opd_analytic'"),
    "unknown task": ([*RUN, "--tasks", "genevall"], "did you mean 'geneval'"),
    "unknown backbone": ([*RUN, "--backbone", "mikro"], "did you mean 'micro'"),
    "backbone path that is no pipeline": ([*RUN, "--backbone", "./nowhere"], "model_index.json"),
    "unknown kernel": ([*RUN, "--set", "sampler.kernel=flow_sd"], "did you mean 'flow_sde'"),
    "unknown sigma table": ([*RUN, "--set", "sampler.table=twice"], "sampler.table"),
    "unknown key": ([*RUN, "--set", "smapler.eta=1"], "did you mean 'sampler'"),
    "unknown nested key": ([*RUN, "--set", "sampler.etaa=1"], "did you mean 'sampler.eta'"),
    "unknown method option": ([*RUN, "--set", "params.trajectory=3"], "did you mean 'params.trajectories'"),
    "wrong type": ([*RUN, "--set", "sampler.steps=ten"], "sampler.steps"),
    "fractional count": ([*RUN, "--set", "params.trajectories=2.5"], "params.trajectories"),
    "value where a section belongs": ([*RUN, "--set", "sampler=ode"], "section"),
    "set without a value": ([*RUN, "--set", "sampler.eta"], "key=value"),
    "method through --set": ([*RUN, "--set", "method=nft"], "its own option"),
    "negative eta": ([*RUN, "--set", "sampler.kernel=flow_sde", "--set", "sampler.eta=-0.1"], "eta"),
    "eta beyond the kernel": ([*RUN, "--set", "sampler.kernel=cps", "--set", "sampler.eta=1.5"], "at most 1"),
    "eta on a deterministic kernel": ([*RUN, "--set", "sampler.eta=0.5"], "eta"),
    "eta that is not a number": ([*RUN, "--set", "sampler.kernel=cps", "--set", "sampler.eta=.nan"], "eta"),
    "zero steps": ([*RUN, "--set", "sampler.steps=0"], "sampler.steps: Input should be greater than 0"),
    "zero learning rate": ([*RUN, "--set", "optimizer.lr=0"], "optimizer.lr"),
    "two budgets": ([*RUN, "--set", "budget.updates=5", "--set", "budget={updates: 5, seconds: 5}"], "exactly one"),
    "empty task list": ([*RUN, "--tasks", ","], "task list is empty"),
    "task named twice": ([*RUN, "--tasks", "ocr,ocr"], "named twice"),
    "duplicate seeds": ([*RUN, "--seeds", "0,1,1"], "named twice"),
    "seeds that are no numbers": ([*RUN, "--seeds", "one"], "--seeds"),
    "seed range backwards": ([*RUN, "--seeds", "3-1"], "backwards"),
    "missing preset": ([*RUN, "--preset", "nothing.yaml"], "cannot read settings from nothing.yaml"),
    "preset that is no mapping": ([*RUN, "--preset", "LIST"], "must be a mapping"),
    "preset that is no YAML": ([*RUN, "--preset", "BROKEN"], "cannot read settings from"),
    "binary preset": ([*RUN, "--preset", "BINARY"], "is not UTF-8 text"),
    "results outside results": ([*RUN, "--results", "/tmp/elsewhere"], "results"),
    "results by way of ..": ([*RUN, "--results", "results/../elsewhere"], "results"),
    "unknown split": ([*RUN, "--set", "evaluation.split=tset"], "did you mean 'test'?"),
    "unknown precision": ([*RUN, "--set", "compute.precision=bfloat"], "did you mean 'bfloat16'?"),
    "unknown rule of merging": (["run", "--method", "merge", "--set", "params.rule=avrage"], "did you mean 'average'?"),
    "unknown source of teachers": ([*RUN, "--teachers", "shiped"], "did you mean 'shipped'?"),
    "unknown source of one teacher": ([*RUN, "--set", "teachers.ocr=trian"], "did you mean 'train'?"),
    "axis that is no YAML": (
        ["compare", "--method", "opd_ppo", "--grid", "points=[1"],
        "--grid 'evaluation.points=[1'",
    ),
    "unknown weighting": ([*RUN, "--set", "params.weighting=klein"], "params.weighting"),
    "fraction above one": ([*RUN, "--set", "params.timestep_fraction=1.2"], "timestep_fraction"),
    "policy gradient that trains no step": ([*GRPO, "params.grpo.timestep_fraction=0.05"], "trains no step"),
    "groups that do not divide": ([*GRPO, "params.grpo.inner_updates=3"], "is not divisible by params.grpo.inner_updates 3"),
    "one deviation for all and for each": (
        ["run", "--method", "multi_reward", "--set", "params.mixing=raw", "--set", "params.global_std=false"],
        "set params.global_std true",
    ),
    "penalty without weight": (
        ["run", "--method", "cascade", "--set", "params.anchor=previous", "--set", "params.nft.kl=0"],
        "params.nft.kl above 0",
    ),
    "teacher guidance for no task": ([*RUN, "--tasks", "ocr", "--set", "teacher_guidance.geneval=1"], "geneval"),
    "teacher folder that is empty": (
        [*RUN, "--tasks", "ocr", "--set", "teachers.ocr=nowhere"],
        "no adapter at nowhere",
    ),
    "folder without teachers": ([*RUN, "--tasks", "ocr", "--teachers", "nowhere"], "no adapter at nowhere/ocr"),
    "teacher for no task": ([*RUN, "--tasks", "ocr", "--set", "teachers.ocrr=shipped"], "ocr"),
    "teachers for a method without": (["run", "--method", "single_task", "--teachers", "shipped"], "takes no teachers"),
    "unknown device": ([*RUN, "--set", "device=tpu9"], "device"),
    "unknown command": (["rum"], "rum"),
    "unknown flag": ([*RUN, "--task", "ocr"], "--task"),
    "missing method": (["run"], "--method"),
    "unknown list": (["list", "method"], "did you mean 'methods'"),
    "eval of no adapter": (["eval", "--adapter", "nowhere"], "no adapter at nowhere"),
    "eval of a corrupt adapter": (["eval", "--adapter", "CORRUPT"], "is not a valid adapter"),
    "eval on an unknown split": (["eval", "--adapter", "base", "--split", "tset"], "did you mean 'test'"),
    "eval of no task": (["eval", "--adapter", "base", "--tasks", ","], "task list is empty"),
    "eval at a guidance that is no number": (["eval", "--adapter", "base", "--guidance", "high"], "--guidance"),
    "eval at a guidance beyond settings": (["eval", "--adapter", "base", "--guidance", "1,1001"], "--guidance 1001"),
    "eval at an infinite guidance": (["eval", "--adapter", "base", "--guidance", "inf"], "--guidance inf"),
    "eval at no guidance": (["eval", "--adapter", "base", "--guidance", "nan"], "--guidance nan"),
    "eval below no guidance": (["eval", "--adapter", "base", "--guidance=-1"], "--guidance -1"),
    "eval at two scales of one name": (["eval", "--adapter", "base", "--guidance", "1,1.0000001"], "scale 1 twice"),
    "eval at a scale twice": (["eval", "--adapter", "base", "--guidance", "0,2,-0"], "scale 0 twice"),
    "serving all tasks": (["serve", "all"], "unknown task 'all'"),
    "serving at no address": (["serve", "ocr", "--world", "micro", "--host", ""], "--host is empty"),
    "serving at what is no text": (["serve", "ocr", "--world", "micro", "--host", "\udcff"], "is not a valid address"),
    "scoring with all tasks": (["score", "all", "made"], "unknown task 'all'"),
    "eval with zero steps": (["eval", "--adapter", "base", "--steps", "0"], "at least 1"),
    "compare of an unknown method": (["compare", "--methods", "opd_ppoo"], "did you mean 'opd_ppo'"),
    "compare on an unknown axis": (["compare", "--method", "opd_analytic", "--grid", "etta=0"], "did you mean 'eta'"),
    "compare with a setting for an absent method": (
        ["compare", "--method", "opd_analytic", "--set", "sft.params.levels=2"],
        "'sft' is not among opd_analytic",
    ),
    "probe of a method that does not train": (["probe", "--methods", "merge"], "does not train"),
    "probe of a sampled method without noise": (["probe", "--methods", "opd_analytic,opd_ppo"], "stochastic kernel"),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "made"
    (made / "corrupt").mkdir(parents=True)
    (made / "list.yaml").write_text("- 1\n")
    (made / "broken.yaml").write_text("a: [1\n")
    (made / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    (made / "corrupt" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "target_modules": ["attn.to_q"]}')
    (made / "corrupt" / "adapter_model.safetensors").write_bytes(b"\x00" * 64)
    return {
        "LIST": str(made / "list.yaml"), "BROKEN": str(made / "broken.yaml"),
        "BINARY": str(made / "binary.yaml"), "CORRUPT": str(made / "corrupt"),
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_wrong_use(name: str, files: dict[str, str], tmp_path: Path, monkeypatch, capsys) -> None:
    arguments, expected = CASES[name]
    code, message = call([files.get(a, a) for a in arguments], monkeypatch, capsys)
    assert code == 2, message
    lines = message.strip().splitlines()
    assert len(lines) == 1, message
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("command", ["status", "run"])
def test_a_working_directory_that_is_gone_is_named(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, message = call([command], monkeypatch, capsys)
    assert (code, message.count("\n"), "working directory" in message) == (2, 1, True), message


EMPTY = [
    ([*RUN, "--backbone", ""], "--backbone"),
    ([*RUN, "--backbone= "], "--backbone"),
    ([*RUN, "--teachers", ""], "--teachers"),
    ([*RUN, "--preset", ""], "--preset"),
    ([*RUN, "--tasks", ""], "--tasks"),
    ([*RUN, "--results", ""], "--results"),
    ([*RUN, "--set", ""], "--set"),
    ([*RUN, "--executor", "slurm", "--profile", ""], "--profile"),
    ([*RUN, "--executor", "slurm", "--slurm", ""], "--slurm"),
    (["sweep", ""], "STUDY"),
    (["sweep", "opd", "--storage", ""], "--storage"),
    (["probe", "--methods", "opd_analytic", "--student", ""], "--student"),
    (["compare", "--grid", "eta=0", ""], "AXES"),
    (["eval", "--adapter", ""], "--adapter"),
    (["score", "ocr", ""], "SOURCE"),
    (["perf", "--compare", "a", ""], "--compare"),
    (["report", ""], "PATHS"),
    (["report", "results", "-o", ""], "--output"),
    (["report", "results", "--diff", "a", ""], "--diff"),
    (["cancel", "all", ""], "NAMES"),
]


@pytest.mark.parametrize(("arguments", "name"), EMPTY, ids=lambda value: value if isinstance(value, str) else "")
def test_an_empty_value_is_not_one_that_is_left_out(
    arguments: list[str], name: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = call(arguments, monkeypatch, capsys)
    assert (code, message) == (2, f"error: {name} is empty: give a value, or leave it out\n")
    assert not list(tmp_path.iterdir())


def test_a_setting_of_slurm_is_called_by_its_own_option(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, message = call([*RUN, "--executor", "slurm", "--slurm", "partition"], monkeypatch, capsys)
    assert code == 2 and "--slurm takes key=value" in message


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    from bench.config.resolve import describe, resolve
    from bench.store.run import Run

    monkeypatch.chdir(tmp_path)
    root = tmp_path / "results" / "runs"
    backbone_hash = describe("micro").fingerprint()
    ours = Run(root, resolve("single_task", ["ocr"], overrides=["budget.updates=2"]), backbone_hash)
    other = Run(root, resolve("single_task", ["ocr"], overrides=["budget.updates=3"]), backbone_hash)
    for run in (ours, other):
        run.open()
    other.save({}, {"step": 1})
    ours.checkpoint.write_bytes(other.checkpoint.read_bytes())
    before = sorted(p.relative_to(root) for p in root.rglob("*"))
    code, message = call(
        ["run", "--method", "single_task", "--tasks", "ocr", "--set", "budget.updates=2"], monkeypatch, capsys
    )
    assert (code, "different spec" in message) == (2, True), message
    ours.checkpoint.write_bytes(b"garbage")
    code, message = call(
        ["run", "--method", "single_task", "--tasks", "ocr", "--set", "budget.updates=2"], monkeypatch, capsys
    )
    assert (code, "corrupt checkpoint" in message) == (2, True), message
    extra = ("lock", "provenance.jsonl", "failure.json")
    after = sorted(p.relative_to(root) for p in root.rglob("*") if p.name not in extra)
    assert after == before
