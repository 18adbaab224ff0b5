"""What lies where a run has its own files: links that lead nowhere, pipes, what may not be used, numbers that are none. It
is said before anything is computed, and no result is lost."""

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.cli.status import table
from bench.config.resolve import resolve
from bench.errors import DamagedError, UsageError, explained
from bench.jobs.status import survey
from bench.store.names import APPENDED, LOGS, REPLACED
from bench.store.run import Run, read_checkpoint
from bench.store.shapes import check_evaluation, check_points, check_state, check_summary
from bench.system.files import parse_json, results_root, write_atomic
from bench.system.outputs import check_output, write_output
from bench.system.places import locked
from bench.system.workers import ALONE, connect, launched
from bench.training.references import References
from tests.system.test_files import put
from tests.system.test_places import everything

KINDS = ["nowhere", "itself", "pipe", "folder"]
ADAPTER = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
STATE = {"step": 1, "last_share": 0.5, "evaluated": [], "scaler": {}, "meter": {"evaluations": {}, "seconds": {}}}
TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4).T,
    "b": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.tensor(2.0),
    "d": torch.zeros(0),
    "e": torch.tensor([True, False]),
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has been begun."""
    run = Run(tmp_path / "results", resolve("opd_analytic", ["ocr"], overrides=["evaluation.pictures=true"]), "0" * 10)
    run.folder.mkdir(parents=True)
    run.open()
    return run


@contextmanager
def as_another_user() -> Iterator[None]:
    """Permissions count, as they do not for root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may write to."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_a_checkpoint_whose_tensors_have_changed_is_refused(run: Run) -> None:
    run.save(TENSORS, STATE)
    restored, _ = run.restore()
    assert all(torch.equal(restored[name], tensor) for name, tensor in TENSORS.items())
    whole = run.checkpoint.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for changed in (whole[:begin].ljust(len(whole), b"\0"), whole[:-1] + bytes([whole[-1] ^ 1])):
        run.checkpoint.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"corrupt checkpoint .*do not match their recorded hash; move .* away"):
            run.restore()


def test_a_checkpoint_of_an_older_version_is_read(run: Run) -> None:
    run.save({"a": torch.ones(3)}, STATE)
    with safe_open(run.checkpoint, "pt") as file:
        state = json.loads(file.metadata()["state"])
    assert state.pop("tensors")
    save_file({"a": torch.ones(3)}, run.checkpoint, {"state": json.dumps(state)})
    tensors, _ = read_checkpoint(run.checkpoint)
    assert tensors["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", [*APPENDED, *REPLACED, *ADAPTER])
def test_what_is_no_file_is_refused_before_anything_changes(run: Run, file: str, kind: str) -> None:
    for log in LOGS:
        (run.folder / log).write_text("{}\n")
    (run.folder / file).unlink(missing_ok=True)
    put(run.folder / file, kind)
    before = everything(run.folder)
    with pytest.raises(DamagedError, match=rf"{file} is .*; move .* away, then rerun the command to start over"), run.lock():
        pytest.fail("it was begun")
    assert everything(run.folder) == before
    assert all((run.folder / log).read_text() == "{}\n" for log in LOGS if log != file)
    if file == "checkpoint.safetensors":
        with pytest.raises(DamagedError):
            run.restore()
        assert everything(run.folder) == before
    if file == "summary.json":
        with pytest.raises(DamagedError):
            _ = run.summary


@pytest.mark.parametrize("name", ["adapter", "pictures", "pictures/ocr"])
def test_a_folder_that_cannot_be_filled_is_refused(run: Run, name: str) -> None:
    (run.folder / name).parent.mkdir(exist_ok=True)
    (run.folder / name).write_text("")
    with pytest.raises(UsageError, match=f"cannot write to .*{name}.*: Not a directory"):
        run.check_place()


@pytest.mark.parametrize("name", ["adapter", "pictures", "metrics.jsonl", "provenance.jsonl", "lock"])
def test_what_another_user_owns_is_found_before_work(shared: Path, name: str) -> None:
    run = Run(shared / "results", resolve("opd_analytic", ["ocr"], overrides=["evaluation.pictures=true"]), "0" * 10)
    with as_another_user():
        run.folder.mkdir(parents=True)
        run.check_place()
    path = run.folder / name
    path.write_text("") if "." in name or name == "lock" else path.mkdir()
    path.chmod(0o444 if path.is_file() else 0o555)
    with as_another_user(), pytest.raises(UsageError, match=f"cannot write to .*{name}: Permission denied; choose another"):
        run.check_place()


def test_a_run_folder_that_may_not_be_looked_into_is_listed(shared: Path) -> None:
    for name in ("merge-0123456789-s0", "lost+found"):
        (shared / name).mkdir(mode=0)
    with as_another_user():
        (line,) = survey(shared)
    assert (line.name, line.state) == ("merge-0123456789-s0", "damaged")
    assert "Permission denied" in line.note
    shared.chmod(0)
    with as_another_user(), pytest.raises(PermissionError):
        survey(shared)
    shared.chmod(0o777)
    assert survey(shared / "new") == []


def summary_of(number: str) -> dict:
    row = {"task": "ocr", "headline": "exact", "strata": ["s"], "rows": {"exact": [1.0], "other": [None]}, "prompts": [0]}
    told = {"folder": "run", "method": "m", "split": "test", "seed": 0, "updates": 1, "teachers": {}}
    cost = {"evaluations": {"training": 1}, "seconds": {"training": 2.5}}
    text = json.dumps(told | {"cost": cost, "models": {"student": row_of(row), "base": row_of(row)}})
    return json.loads(text.replace("1.0", number))


def row_of(row: dict) -> dict:
    return {"ocr": row}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_damage(number: str) -> None:
    path, value = Path("run/summary.json"), float(number)
    check_summary(path, fine := summary_of("1.0"), ["ocr"])
    row = fine["models"]["student"]["ocr"]
    check_evaluation(path, row, "ocr", 1)
    with pytest.raises(DamagedError, match="exact contains a value that is not finite"):
        check_summary(path, summary_of(number), ["ocr"])
    with pytest.raises(DamagedError, match="exact contains a value that is not finite"):
        check_evaluation(path, summary_of(number)["models"]["base"]["ocr"], "ocr", 1)
    with pytest.raises(DamagedError, match="seconds contains a value that is not finite"):
        check_summary(path, fine | {"cost": {"evaluations": {}, "seconds": {"training": value}}}, ["ocr"])
    with pytest.raises(DamagedError, match="prompts contains a value that is not finite"):
        check_evaluation(path, row | {"prompts": [value]}, "ocr", 1)
    with pytest.raises(DamagedError, match="share in line 1"):
        check_points(path, [row | {"step": 1, "share": value}])
    check_state(path, STATE)
    for change in ({"last_share": value}, {"evaluated": [value]}, {"scaler": {"scale": value}}):
        with pytest.raises(DamagedError):
            check_state(path, STATE | change)
    if math.isnan(value):
        with pytest.raises(DamagedError, match="other contains a value that is not finite"):
            check_evaluation(path, row | {"rows": {"exact": [1.0], "other": [value]}}, "ocr", 1)


@pytest.mark.parametrize(
    ("place", "number"),
    [(place, number) for place in ("seconds", "evaluations") for number in ("NaN", "Infinity", "1e999", "-1", '"x"')]
    + [("seconds", '1e308, "scoring": 1e308'), ("seconds", "1" + "0" * 400)],
)
def test_one_run_with_impossible_clocks_hides_no_other(tmp_path: Path, run: Run, place: str, number: str) -> None:
    log, root = run.folder / "metrics.jsonl", run.folder.parent
    row = '{"step": 1, "evaluations": {"training": 8}, "seconds": {"training": 2}}'
    other = root / "merge-0123456789-s0"
    other.mkdir()
    (other / "spec.json").write_text((run.folder / "spec.json").read_text())
    log.write_text(row + "\n")
    assert [line.state for line in survey(root)] == ["stopped", "stopped"]
    changed = row.replace("8" if place == "evaluations" else "2", number)
    log.write_text(changed + "\n")
    assert parse_json(changed, "here")
    lines = survey(root)
    table(lines)
    assert [line.state for line in lines] == ["damaged", "stopped"]
    assert "metrics.jsonl has invalid contents" in lines[0].note


def test_a_pipe_is_written_to_only_where_a_user_names_it(tmp_path: Path) -> None:
    path, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(path)
    link.symlink_to(path)
    for named in (path, link):
        with pytest.raises(OSError, match="it is a pipe or a device, not a file") as refusal:
            write_atomic(named, b"1")
        assert explained(refusal.value).startswith(f"{named}: ")
    assert everything(tmp_path) == ["link", "pipe"]
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()), daemon=True)
    reader.start()
    check_output(path)
    write_output(path, b"1")
    reader.join(10)
    assert read == [b"1"]


@pytest.mark.parametrize("kind", ["folder", "nowhere", "pipe"])
@pytest.mark.parametrize("pictures", [False, True])
def test_a_cache_that_cannot_be_kept_costs_no_result(tmp_path: Path, kind: str, pictures: bool, monkeypatch) -> None:
    record, said = {"task": "ocr"}, []

    def evaluate(adapter, task, guidance, folder, split):
        if folder:
            folder.mkdir(parents=True)
        return SimpleNamespace(record=lambda: record)

    spec = resolve("opd_analytic", ["ocr"], overrides=[f"evaluation.pictures={str(pictures).lower()}"])
    meter = SimpleNamespace(purpose=lambda *_, **how: tempfile.TemporaryDirectory())
    task = SimpleNamespace(scorer_name="s", prompts=lambda _: [])
    lab = SimpleNamespace(tasks={"ocr": task}, backbone=SimpleNamespace(meter=meter))
    run = SimpleNamespace(backbone_hash="h", folder=tmp_path / "run")
    loop = SimpleNamespace(spec=spec, workers=ALONE, lab=lab, run=run, evaluate=evaluate, features=None)
    cache = tmp_path / "cache"
    references = References(loop, cache, None, said.append)
    assert references.of("base", None, "ocr", "base", 1.0) == record
    assert said == []
    (kept,) = cache.glob("*.json")
    kept.unlink()
    put(kept, kind)
    assert references.of("base", None, "ocr", "base", 1.0) == record
    assert any(f"the evaluation of base on ocr could not be cached: {kept}" in line for line in said)
    assert not list(cache.glob(".*"))
    if pictures:
        (kept_pictures,) = cache.glob("pictures-*")
        assert references.pictures == {"base": {"ocr": f"cache/{kept_pictures.name}"}}
        kept_pictures.rmdir()
        monkeypatch.setattr(Path, "rename", refused)
        references.of("base", None, "ocr", "base", 1.0)
        assert references.pictures == {"base": {}}
        assert not list(cache.glob(".*"))


def refused(path: Path, _: Path) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))


def test_an_output_s_link_leads_where_it_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, target in (("lost", "file/o.json"), ("new", "deep/down/o.json"), ("round", "round")):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(UsageError, match=r"cannot write to .*file: Not a directory"):
        check_output(tmp_path / "lost")
    for name in ("new", "round"):
        check_output(tmp_path / name)
        write_output(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"
    assert (tmp_path / "deep" / "down" / "o.json").read_bytes() == b"1"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_that_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "lock", kind)
    with pytest.raises(DamagedError, match="lock is "), locked(tmp_path / "lock"):
        pytest.fail("it was held")


def test_results_that_lead_nowhere_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").symlink_to("gone")
    for named in ("results", "results/runs"):
        with pytest.raises(UsageError, match="results is a broken link"):
            results_root(Path(named))
    Path("gone").mkdir()
    assert results_root(Path("results/runs")).name == "runs"


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"MASTER_ADDR": None}, r"WORLD_SIZE=2 is set but nothing launched these processes \(MASTER_ADDR is not set\)"),
        ({"RANK": None}, "nothing launched"),
        ({"LOCAL_RANK": ""}, "nothing launched"),
        ({"MASTER_PORT": None}, "nothing launched"),
        ({"RANK": "abc"}, "RANK=abc in the environment is not an integer of at least 0"),
        ({"RANK": "-1"}, "RANK=-1 in the environment is not an integer"),
        ({"LOCAL_RANK": "²"}, "LOCAL_RANK=² in the environment is not an integer"),
        ({"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"MASTER_PORT": "80x"}, "MASTER_PORT=80x in the environment is not an integer of at least 1"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999 in the environment is above 65535"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc in the environment is not an integer of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment is not an integer of at least 1"),
    ],
)
def test_an_environment_that_no_launcher_makes_is_named(monkeypatch, change: dict, said: str) -> None:
    for name, value in (LAUNCHED | change).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"{said}.*: start with torchrun or accelerate launch, or unset it"):
        connect("cpu")


def test_what_no_launcher_set_is_one_process(monkeypatch, capsys) -> None:
    from bench.printing import note
    from tasks.ocr.engine import cores

    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert connect("cpu") is ALONE
    monkeypatch.setenv("WORLD_SIZE", "")
    assert connect("cpu") is ALONE
    monkeypatch.setenv("RANK", "abc")
    note(["x"])  # whoever counts on it says so
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "abc")
    with pytest.raises(UsageError, match="LOCAL_WORLD_SIZE=abc"):
        cores()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert launched("SLURM_NTASKS", 1) == 4


CLOSED = """
import os, sys
from bench.errors import exit_on_error
for number in map(int, sys.argv[1]):
    os.close(number)
def main():
    mine = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
    print("said")
    sys.exit(0 if mine > 2 and all(os.get_inheritable(number) for number in (0, 1, 2)) else 9)
exit_on_error(main)
"""


@pytest.mark.parametrize("closed", ["1", "12", "012"])
def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    """As after `bench run ... >&- 2>&-`."""
    words = [sys.executable, "-c", CLOSED, closed, str(tmp_path / "lock")]
    assert subprocess.run(words, timeout=60).returncode == 0
    assert (tmp_path / "lock").read_bytes() == b""


def test_a_file_that_is_too_large_has_a_cure() -> None:
    assert "ulimit -f" in explained(OSError(errno.EFBIG, "File too large", "x"))
