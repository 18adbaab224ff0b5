"""What the place to work in may be like: read-only, full, without locks, behind links, in a notebook, with files of others.
Work that could not be stored is refused before it is done; work that was done is never lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.errors import DamagedError, UsageError, exit_on_error, one_line
from bench.system.files import results_root, write_atomic
from bench.system.outputs import check_folder, check_output, write_output
from bench.system.places import check_writable, locked
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

TINY = ["evaluation.steps=1", "evaluation.split=validation", "evaluation.points=[]", "params.trajectories=2", "lora.rank=4"]
SETS = [part for setting in ("budget.updates=2", *TINY) for part in ("--set", setting)]
RUN = ["run", "--method", "opd_analytic", "--tasks", "ocr", *SETS]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def mounted(folder: Path, options: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path):
    """Mount a small disk of a given size; root may do that."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or not mounted(folder, "size=4m"):
        pytest.skip("only root mounts disks")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


COMMANDS = {
    "run": RUN,
    "run as a job": [*RUN, "--executor", "local"],
    "teach": ["teach", "--tasks", "ocr"],
    "compare": ["compare", "--methods", "merge", "--tasks", "ocr", "--seeds", "0"],
    "probe": ["probe", "--methods", "opd_analytic", "--tasks", "ocr", "--states", "2", "--draws", "1", "--output", "p.json"],
    "perf": ["perf", "--output", "p.json"],
    "report": ["report"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_place_is_refused_before_work(disk: Path, name: str) -> None:
    remount(disk, "ro")
    done = bench(COMMANDS[name], disk)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Read-only file system" in line
    assert "Traceback" not in done.stderr
    assert bench(["status"], disk).returncode == 0


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on(disk: Path) -> None:
    """The first checkpoint does not fit; nothing half-written stays, and status says why."""
    (disk / "other").write_bytes(b"x" * 3_500_000)
    words = [*(word.replace("updates=2", "updates=4") for word in RUN), "--set", "checkpoint_every=1"]
    full = bench(words, disk)
    assert full.returncode == 1
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "checkpoint.safetensors: No space left on device; free some space, then rerun the command to resume" in line
    assert "Traceback" not in full.stderr
    assert not [path for path in disk.rglob("*") if path.name.endswith(".tmp")]
    said = bench(["status"], disk, before=on_a_wide_terminal).stdout
    assert "failed" in said
    assert "No space left on device" in said
    remount(disk, "size=64m")
    assert bench(words, disk).returncode == 0


def on_a_wide_terminal() -> None:
    os.environ["COLUMNS"] = "300"


def without_locks() -> None:
    import errno
    import fcntl

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse


@pytest.mark.parametrize("name", ["run", "run as a job", "compare", "teach"])
def test_a_file_system_without_locks_is_named(tmp_path: Path, name: str) -> None:
    done = bench(COMMANDS[name], tmp_path, before=without_locks)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "does not support locks (flock): No locks available" in line
    assert everything(tmp_path) == []


def in_a_notebook(folder: str) -> None:
    """As Jupyter sets its kernels' commands up; and a user's settings of matplotlib, broken ones among them."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["MPLCONFIGDIR"] = folder


@pytest.fixture
def own_matplotlib(tmp_path: Path) -> Path:
    (tmp_path / "mpl" / "stylelib").mkdir(parents=True)
    for path in (tmp_path / "matplotlibrc", tmp_path / "mpl" / "stylelib" / "mine.mplstyle"):
        path.write_bytes(b"\xff\xfe\x80 broken")
    (tmp_path / "mpl" / "matplotlibrc").write_text("font.size: 40\nsavefig.dpi: 7\nfigure.facecolor: red\n")
    return tmp_path


@pytest.mark.slow
def test_a_notebook_s_and_a_user_s_matplotlib_do_not_matter(own_matplotlib: Path, tmp_path_factory) -> None:
    """The contact sheet and every figure of the report are those of a machine without any set-up, byte for byte."""
    plain = tmp_path_factory.mktemp("plain")
    made = {}
    for place in (plain, own_matplotlib):
        changed = {"before": in_a_notebook, "arguments": (str(place / "mpl"),)} if place is own_matplotlib else {}
        for words in (RUN, ["report", "results/runs"]):
            done = bench(words, place, **changed)
            assert done.returncode == 0, done.stderr
            assert "no contact sheet" not in done.stderr
        pictures = [*place.glob("results/runs/*/sheet.png"), *sorted(place.glob("results/report/figures/*"))]
        made[place] = {path.name: path.read_bytes() for path in pictures}
    assert "sheet.png" in made[plain]
    assert len(made[plain]) > 3
    assert made[plain].keys() == made[own_matplotlib].keys()
    assert [name for name in made[plain] if made[plain][name] != made[own_matplotlib][name]] == []


def breaks_drawing() -> None:
    import bench.training.sheet

    def broken(*_: object) -> bytes:
        raise ValueError("no\nfont")

    bench.training.sheet._painted = broken


def test_a_contact_sheet_that_cannot_be_drawn_fails_no_run(tmp_path: Path) -> None:
    done = bench(RUN, tmp_path, before=breaks_drawing)
    assert done.returncode == 0, done.stderr
    assert "gain recovered" in done.stdout
    assert "no contact sheet: no font" in done.stderr


def breaks_report() -> None:
    import report.sections

    def broken(*_: object) -> None:
        raise ValueError("no\npage")

    report.sections.make = broken


def test_a_report_that_cannot_be_made_fails_no_comparison(tmp_path: Path) -> None:
    sets = [part for setting in TINY[:2] for part in ("--set", setting)]
    words = ["compare", "--methods", "merge", "--tasks", "ocr", "--seeds", "0", "--executor", "inline", *sets]
    done = bench(words, tmp_path, before=breaks_report)
    assert done.returncode == 0, done.stderr
    assert "no report was written: no page" in done.stderr
    assert list(tmp_path.glob("results/runs/comparison-*.json"))


@pytest.mark.parametrize(
    "content",
    ['{"eval_loss": 0.1}', "[]", "{", "", '{"cost": {"evaluations": 3}}', '{"cost": null}']
    + [f'{{"evaluations": {n}, "cost": {{"evaluations": {{"training": {n}}}}}}}' for n in ("1" * 400, "true", "-1")],
)
@pytest.mark.parametrize("name", ["summary.json", "training.json"])
def test_another_tool_s_file_beside_a_teacher_says_nothing_of_its_cost(tmp_path: Path, name: str, content: str) -> None:
    from math import isnan

    from bench.training.teachers import Teacher, training_nfe

    folder = tmp_path / "checkpoints" / "ocr"
    folder.mkdir(parents=True)
    (folder / name if name == "training.json" else folder.parent / name).write_text(content)
    assert isnan(training_nfe({"ocr": Teacher("ocr", folder, "h")})["ocr"])


def test_a_teacher_of_our_own_run_with_a_damaged_summary_is_refused(tmp_path: Path) -> None:
    from bench.training.teachers import Teacher, training_nfe

    adapter = tmp_path / "single_task-0-s0" / "adapter"
    adapter.mkdir(parents=True)
    (adapter.parent / "spec.json").write_text("{}")
    (adapter.parent / "summary.json").write_text('{"cost": {"evaluations": {"training": 320}}}')
    assert training_nfe({"ocr": Teacher("ocr", adapter, "h")}) == {"ocr": 320.0}
    (adapter.parent / "summary.json").write_text("{")
    with pytest.raises(DamagedError, match=r"summary\.json is not JSON"):
        training_nfe({"ocr": Teacher("ocr", adapter, "h")})


def test_a_run_with_a_foreign_summary_beside_its_teacher_ends_well(tmp_path: Path) -> None:
    import bench as package

    teachers = Path(package.__file__).parent / "backbones" / "micro" / "weights" / "teachers"
    shutil.copytree(teachers / "ocr", tmp_path / "own" / "ocr")
    (tmp_path / "own" / "ocr" / "training.json").unlink(missing_ok=True)
    (tmp_path / "own" / "summary.json").write_text('{"eval_loss": 0.1}')
    done = bench([*RUN, "--teachers", "own"], tmp_path)
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.glob("results/runs/*/summary.json")
    assert json.loads(summary.read_text())["teachers"]["ocr"]["evaluations"] is None


@pytest.mark.parametrize("link", ["results", "results/runs", "scratch"])
def test_a_link_on_the_way_to_results_is_followed(tmp_path: Path, monkeypatch, link: str) -> None:
    (tmp_path / "disk" / "exp").mkdir(parents=True)
    (tmp_path / "results").mkdir(exist_ok=True) if link == "results/runs" else None
    (tmp_path / link).symlink_to(tmp_path / "disk" / "exp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    named = Path("scratch/results/runs" if link == "scratch" else "results/runs")
    assert results_root(named) == tmp_path / named
    if link == "results":
        (tmp_path / "results" / "deeper").mkdir()
        monkeypatch.chdir("results/deeper")  # whose own name is disk/exp/deeper
        with pytest.raises(UsageError, match="inside a folder named 'results'"):
            results_root(Path("runs"))
        monkeypatch.setenv("PWD", str(tmp_path / "results" / "deeper"))
        assert results_root(Path("runs")) == tmp_path / "results" / "deeper" / "runs"


def test_what_leaves_a_results_folder_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "out").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "results" / "round").symlink_to(tmp_path / "results" / "round")
    (tmp_path / "results" / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for named in ("results/..", "results/../elsewhere", "results/out/../x", "elsewhere", ".", "/", "results/runs/../../x"):
        with pytest.raises(UsageError, match="inside a folder named 'results'"):
            results_root(Path(named))
    assert results_root(Path("elsewhere/../results/runs")) == tmp_path / "results" / "runs"
    for named in ("results/round", "results/file", "results/file/x"):
        with pytest.raises(UsageError):
            results_root(Path(named)) and check_writable(results_root(Path(named)))


@pytest.mark.slow
def test_runs_and_jobs_work_where_results_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "exp").mkdir(parents=True)
    (tmp_path / "results").symlink_to("scratch/exp")
    done = bench([*RUN, "--executor", "local"], tmp_path)
    assert done.returncode == 0, done.stderr
    said = bench(["status"], tmp_path).stdout
    assert "1 done" in said
    assert list(tmp_path.glob("scratch/exp/runs/opd_analytic-*/summary.json"))


def test_an_output_s_folder_is_made_and_what_cannot_be_is_refused_first(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "deep" / "o.json")
    assert everything(tmp_path) == []
    write_output(tmp_path / "new" / "deep" / "o.json", b"1")
    assert (tmp_path / "new" / "deep" / "o.json").read_bytes() == b"1"
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path / "new", "it is a folder"), (tmp_path / "file" / "o.json", "Not a directory")):
        with pytest.raises(UsageError, match=why):
            check_output(path)
    with pytest.raises(UsageError, match="File name too long"):
        check_output(tmp_path / ("x" * 300) / "o.json")
    for folder, why in ((tmp_path / "new", "is not empty"), (tmp_path / "file", "Not a directory")):
        with pytest.raises(UsageError, match=why):
            check_folder(folder)
    check_folder(tmp_path / "other" / "deep")
    assert not (tmp_path / "other").exists()
    check_output(None)
    check_output(Path("/dev/null"))
    write_output(Path("/dev/null"), b"1")
    assert not Path("/dev/null").is_file()


def test_probe_refuses_its_output_before_it_measures(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for output in (".", "taken/o.json"):
        done = bench([*COMMANDS["probe"][:-1], output], tmp_path)
        assert done.returncode == 2, done.stderr
        assert "cannot write to" in done.stderr
    assert everything(tmp_path) == ["taken"]


def test_writing_through_a_link_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to("there/target.json")
    write_atomic(tmp_path / "link.json", b"1")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "there" / "target.json").read_bytes() == b"1"
    write_atomic(tmp_path / ("é" * 120), b"1")  # with a temporary name that is not longer than names may be


def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "x"):
        with pytest.raises(OSError, match="directory") as failed:
            write_atomic(path, b"1")
        assert one_line(failed.value).startswith(f"{path}: ")
    assert everything(tmp_path) == ["folder"]


def test_a_lock_that_was_taken_away_is_no_lock(tmp_path: Path) -> None:
    """Who waited for the file of a start that was refused must not hold what nobody else sees."""
    import threading

    path, order = tmp_path / "made" / "lock", []
    with locked(path):
        waiting = threading.Thread(target=lambda: [order.append(1) for _ in [0] if take(path)])
        waiting.start()
        time.sleep(0.3)  # by then it waits
        path.unlink()
    waiting.join(10)
    assert order == [1]
    assert path.exists()


def take(path: Path) -> bool:
    with locked(path) as file:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())


def zero_teacher(folder: str) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(folder) / "ocr" / "adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize("before", [[], ["results"], ["results", "results/runs"]])
def test_a_start_that_is_refused_leaves_nothing_behind(tmp_path: Path, before: list[str]) -> None:
    """Also where the refusal comes once everything is loaded: a teacher that equals the base."""
    import bench as package

    teachers = Path(package.__file__).parent / "backbones" / "micro" / "weights" / "teachers"
    shutil.copytree(teachers / "ocr", tmp_path / "own" / "ocr")
    zero_teacher(str(tmp_path / "own"))
    for name in before:
        (tmp_path / name).mkdir()
    there = everything(tmp_path)
    done = bench([*RUN, "--teachers", "own"], tmp_path)
    assert (done.returncode, "equals the base" in done.stderr) == (2, True), done.stderr
    assert everything(tmp_path) == there


def test_what_the_system_refuses_is_one_line(capsys) -> None:
    import errno
    import sqlite3

    def fails(error: BaseException):
        def main():
            raise error

        with pytest.raises(SystemExit) as stop:
            exit_on_error(main)
        return stop.value.code, capsys.readouterr().err

    full = OSError(errno.ENOSPC, "No space left on device", "/x/y\x1b[2J")
    assert fails(full) == (1, "error: /x/y\\x1b[2J: No space left on device; free some space, then rerun the command to resume\n")
    assert fails(OSError(errno.EIO, "Input/output error")) == (1, "error: Input/output error\n")
    assert fails(sqlite3.OperationalError("database is locked")) == (1, "error: database is locked\n")
    assert fails(KeyboardInterrupt()) == (130, "interrupted\n")
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())  # a fault of our own keeps its traceback


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    """As `bench list kernels | true`."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-m", "bench", "list", "kernels"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, b"")


def test_an_output_that_is_full_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bench", "list", "kernels"], stdout=full, stderr=subprocess.PIPE, encoding="utf-8"
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == "error: standard output: No space left on device\n"
