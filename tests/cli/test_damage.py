"""Whatever became of a record, no command ends in a traceback: damage is one line that names the file, and never hides
the others. Every file of a finished and of an unfinished run and of a launch is damaged in every way of `WAYS`."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli.app import main
from bench.cli.comparison_plan import POINTS
from bench.config.resolve import resolve
from bench.jobs.launches import Job, launches, new_launch
from report.evidence import collect
from report.sections import make

pytestmark = pytest.mark.usefixtures("few_prompts")

SETTINGS = ["evaluation.steps=1", "evaluation.split=validation", "params.trajectories=2", "lora.rank=4", "probes.interference=0"]
BUDGET = 64
ESCAPE = "\x1b]52;c;aGVsbG8=\x07"


def nothing_but_the_keys(data: bytes) -> bytes:
    """Every first-level value is null; for what is no JSON, something that is."""
    try:
        first = json.loads(data.split(b"\n")[0] if data.count(b"\n{") else data)
        return json.dumps({key: None for key in first}).encode() + b"\n"
    except (ValueError, TypeError):
        return b'{"a": null}\n'


WAYS: dict[str, Callable[[bytes], bytes] | None] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "padded with NUL": lambda data: data[: len(data) // 2].ljust(len(data), b"\0"),
    "binary": lambda data: bytes(range(255, -1, -1)) * 4,
    "a list": lambda data: b"[]\n",
    "an object": lambda data: b"{}\n",
    "nested": lambda data: b"[" * 50_000 + b"\n",
    "without values": nothing_but_the_keys,
    "gone": None,
    "a folder": None,
}
RUN_FILES = [
    "spec.json", "summary.json", "provenance.jsonl", "metrics.jsonl", "evaluations.jsonl", "probes.jsonl", "lock",
    "checkpoint.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "sheet.png",
]  # fmt: skip
UNFINISHED_FILES = [
    "spec.json", "failure.json", "provenance.jsonl", "metrics.jsonl", "evaluations.jsonl", "probes.jsonl", "lock",
    "checkpoint.safetensors",
]  # fmt: skip


def damage(path: Path, way: str) -> None:
    data = path.read_bytes() if path.exists() else b"x" * 40
    path.unlink(missing_ok=True)
    if way == "a folder":
        path.mkdir(parents=True)
    elif change := WAYS[way]:
        path.write_bytes(change(data))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run `bench WORDS` in this process; gives its exit code and what it said. A traceback is an exception here."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        monkeypatch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert "\x1b]" not in out + err
        assert len([line for line in err.split("\n") if line.startswith("error: ")]) <= 1
        return stop.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a comparison with one run, which `bench run` would make as well."""
    root = tmp_path_factory.mktemp("damage") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench", *compared(root)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    command = ["bench", *ran(root)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return root


def compared(root: Path) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    words = ["compare", "--methods", "opd_analytic", "--tasks", "ocr", "--seeds", "0", "--budget", str(BUDGET), *sets]
    return [*words, "--results", str(root), "--executor", "inline"]


def ran(root: Path) -> list[str]:
    points = ",".join(f"{(i + 1) / POINTS:.4f}" for i in range(POINTS))
    told = [f"budget={{nfe: {BUDGET}}}", f"evaluation.points=[{points}]", *SETTINGS]
    sets = [word for setting in told for word in ("--set", setting)]
    return ["run", "--method", "opd_analytic", "--tasks", "ocr", "--seeds", "0", *sets, "--results", str(root)]


@pytest.fixture
def results(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them beside a healthy run; comparisons draw no report here."""
    monkeypatch.setattr("bench.cli.compare.write_report", lambda *_: None)
    root = tmp_path / "results"
    shutil.copytree(finished, root)
    healthy = root / "merge-0000000000-s0"
    healthy.mkdir()
    shutil.copy(run_folder(root) / "spec.json", healthy / "spec.json")
    (healthy / "summary.json").write_text("{}")
    return root


def run_folder(root: Path) -> Path:
    (folder,) = root.glob("opd_analytic-*-s0")
    return folder


def unfinished(root: Path) -> Path:
    """The run as a failed start leaves it, before its summary."""
    folder = run_folder(root)
    (folder / "summary.json").unlink()
    (folder / "failure.json").write_text(json.dumps({"error": f"it broke {ESCAPE}"}))
    return folder


def watch(call, root: Path, name: str) -> str:
    """Everything that only looks; returns what `bench status` says of the run."""
    code, out, _ = call("status", "--results", str(root))
    assert code == 0
    assert "merge-0000000000" in out
    for command in ("logs", "cancel"):
        code, _, err = call(command, name, "--results", str(root))
        assert code in (0, 2), err
    make(collect([root]))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("file", RUN_FILES)
def test_a_damaged_file_of_a_finished_run(call, results: Path, file: str) -> None:
    name = run_folder(results).name
    for way in WAYS:
        shutil.copytree(results, whole := results.with_name("whole"))
        damage(run_folder(results) / file, way)
        said = watch(call, results, name)
        if file == "spec.json":
            assert "damaged" in said, way
        for words in (ran(results), compared(results)):
            code, _, err = call(*words)
            assert code in (0, 2), (way, words[0], err)
            if code:
                assert f"{name}/{file}" in err, (way, err)
        shutil.rmtree(results)
        whole.rename(results)


@pytest.mark.slow
@pytest.mark.parametrize("file", UNFINISHED_FILES)
def test_a_damaged_file_of_an_unfinished_run(call, results: Path, file: str) -> None:
    """It goes on where nothing is lost; otherwise it says which file, and the run is listed as damaged."""
    name = unfinished(results).name
    for way in WAYS:
        shutil.copytree(results, whole := results.with_name("whole"))
        damage(run_folder(results) / file, way)
        said = watch(call, results, name)
        code, _, err = call(*ran(results))
        assert code in (0, 2) or way == "a folder", (way, err)
        if code:
            assert f"{name}/{file}" in err, (way, err)
            # A list of thousands of runs reads no tensors: only going on tells that their bytes have changed.
            unread = file == "checkpoint.safetensors" and way == "padded with NUL"
            if file not in ("lock", "probes.jsonl") and not unread:
                assert "damaged" in said, (way, said)
        shutil.rmtree(results)
        whole.rename(results)


def test_a_damaged_cache_is_made_again(call, results: Path) -> None:
    """Evaluations of the base and of teachers: the run says so and makes them anew, to the same numbers."""
    folder = run_folder(results)
    before = json.loads((folder / "summary.json").read_text())["models"]
    for way in WAYS:
        if way == "gone":
            continue
        (folder / "summary.json").unlink()
        for path in (results / "cache").glob("evaluation-*.json"):
            damage(path, way)
        code, _, err = call(*ran(results))
        assert code == 0, err
        assert ("could not be cached" in err) == (way == "a folder")  # that cannot be written over
        assert "evaluating again" in err, way
        assert json.loads((folder / "summary.json").read_text())["models"] == before


@pytest.fixture
def launched(results: Path) -> Path:
    """The folder of a launch with two jobs that have ended, one of a run and one of none."""
    launch = new_launch(results, "local", [Job("a", run=unfinished(results).name), Job("b")])
    known = launch.submitted({"a": "4000000001", "b": "4000000002"})
    for job in known:
        for kind in ("out", "err"):
            launch.log(job, kind).write_text(f"a line\n{ESCAPE}\x1b[2J\nlast\n")
        launch.remember(job, "FAILED")
        (launch.folder / "told").mkdir(exist_ok=True)
    from bench.jobs.launches import told_file

    told_file(launch.folder, "b").write_text('{"outcome": "done", "error": ""}')
    launch.mark_cancelled(known[0])
    return launch.folder


@pytest.mark.parametrize("file", ["launch.json", "told", "ended", "cancelled", "log"])
def test_a_damaged_launch(call, results: Path, launched: Path, file: str) -> None:
    """The other runs are listed; the launch is named and its jobs are left alone."""
    other = new_launch(results, "local", [Job("c", run="merge-0000000000-s0")])
    place = {"launch.json": launched, "log": launched / "jobs"}.get(file, launched / file)
    (path, *_) = sorted(place.glob("*_0_log.err" if file == "log" else "*.json" if file != "ended" else "*"))[:1] or [
        launched / "cancelled" / "none"
    ]
    data = path.read_bytes() if path.exists() else b""
    for way in WAYS:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(data)
        damage(path, way)
        code, out, _ = call("status", "--results", str(results))
        assert code == 0
        assert "merge-0000000000" in out
        if file == "launch.json" and way != "gone":
            assert "damaged" in out, way
            code, _, err = call("cancel", launched.name, "--results", str(results))
            assert (code, "launch.json" in err) == (2, True), err
        for command in ("logs", "cancel"):
            code, _, err = call(command, "all", "--results", str(results))
            assert code in (0, 2), err
    assert other.folder.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "../../../etc/passwd"), ("id", "1"), ("id", "0"), ("id", "-1"), ("id", "12 -u root"), ("id", "٤٢"), ("id", 12),
        ("id", "12_0"), ("run", "../../elsewhere"), ("run", "/etc"), ("run", ".."), ("run", None), ("run", ".hidden"),
        ("label", ["x"]), ("arguments", "list"), ("needs", {"a": 1}),
    ],
)  # fmt: skip
def test_a_launch_that_names_no_job_is_damaged(call, results: Path, launched: Path, field: str, value: object) -> None:
    record = json.loads((launched / "launch.json").read_text())
    record["jobs"][0][field] = value
    (launched / "launch.json").write_text(json.dumps(record))
    assert launches(results) == [] or field in ("arguments", "needs")
    assert call("status", "--results", str(results))[0] == 0
    code, _, err = call("logs", "a", "--results", str(results))
    assert code == 2 or field in ("arguments", "needs"), err


def test_looking_unpickles_nothing(call, results: Path, launched: Path, tmp_path: Path) -> None:
    """submitit's results are pickles: whoever could write there would have their code run by who looks."""
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    for number in ("4000000001", "4000000002"):
        for kind in ("0_result", "submitted"):
            (launched / "jobs" / f"{number}_{kind}.pkl").write_bytes(pickle.dumps(("success", Trap())))
    for words in (["status"], ["logs", "a"], ["cancel", "all"]):
        call(*words, "--results", str(results))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap()))
    assert trap.exists()  # the trap works


def test_nothing_that_a_terminal_obeys_is_printed(call, results: Path, launched: Path) -> None:
    """Failures, logs, folders' names, labels, and what a user typed."""
    code, out, _ = call("status", "--results", str(results))
    assert "\x1b" not in out
    shutil.move(launched / "cancelled", launched / "kept")
    code, out, _ = call("status", "--results", str(results))
    assert r"\x1b]52" in out
    odd = results / f"sft-{ESCAPE}\n-s0"
    shutil.copytree(run_folder(results), odd)
    _, out, _ = call("status", "--results", str(results))
    assert "\x1b" not in out
    code, out, _ = call("logs", "a", "--results", str(results))
    assert code == 0
    assert "\x1b" not in out
    assert r"\x1b[2J" in out
    assert "\nlast\n" in out
    for words in (["run", "--method", ESCAPE], ["logs", ESCAPE], ["run", f"--{ESCAPE}"], ["list", f"\x9b2J{ESCAPE}"]):
        _, out, err = call(*words)
        assert "\x1b" not in out + err
        assert "\x9b" not in out + err
    page = collect([results])
    assert any(r"\x1b" in line or "�" in line for line in map(repr, page.unfinished()))


@pytest.mark.parametrize("command", ["cancel", "logs"])
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_does_not_mean_all(call, results: Path, launched: Path, command: str, name: str) -> None:
    code, _, err = call(command, name, "--results", str(results))
    assert (code, "is empty" in err) == (2, True)


def test_resuming_never_lengthens_a_log(call, results: Path) -> None:
    """Cutting a log to a checkpoint's length pads one that is too short with NULs, which nothing reads again."""
    folder = unfinished(results)
    metrics = folder / "metrics.jsonl"
    kept = metrics.read_bytes()[:-10]
    metrics.write_bytes(kept)
    code, _, err = call(*ran(results))
    assert code == 2
    assert "metrics.jsonl is truncated" in err
    assert "then rerun the command to start over" in err
    assert metrics.read_bytes() == kept
    assert resolve("opd_analytic", ["ocr"])  # and the harness goes on


def test_a_torn_start_is_mended(call, results: Path) -> None:
    """The next line would be glued to one that a kill cut off."""
    folder = unfinished(results)
    log = folder / "provenance.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"started": "20')
    code, _, err = call(*ran(results))
    assert code == 0, err
    assert [json.loads(line)["teachers"] for line in log.read_text().splitlines()] == [json.loads(whole)["teachers"]] * 2


def test_what_a_kill_left_half_written_goes(call, results: Path) -> None:
    folder = unfinished(results)
    old, new = (results / "cache" / f".evaluation-{name}.json.ab12cd34.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    left = [old, folder / ".checkpoint.safetensors.ab12cd34.tmp", folder / "adapter" / ".adapter_model.safetensors.x.tmp"]
    for path in left:
        path.write_bytes(b"x" * 1000)
    os.utime(old, (0, 0))
    code, _, err = call(*ran(results))
    assert code == 0, err
    assert not any(path.exists() for path in left)
    assert new.exists()  # it may be another run's, at this moment
