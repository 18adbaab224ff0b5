"""Text that a user, a task or a system wrote is printed as it is: nothing of it is a style, a link or an emoji."""

import ast
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.table import Table

from bench.analysis.comparison import standings
from bench.analysis.stats import Estimate
from bench.cli.compare import print_standings
from bench.cli.console import Console, print_table
from bench.cli.probe import print_probes
from bench.cli.score import print_summary
from bench.cli.status import table
from bench.jobs.status import StatusRow
from bench.printing import Plain, progress_bar, terminal
from bench.training.evaluate import Evaluation
from bench.training.loop import Progress
from sweeps.storage import Place
from sweeps.study import StudySpec
from sweeps.summary import show
from tests.cli.test_compare import record
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

HOSTILE = ["[bold]x[/bold]", "[/]", "[/red]", ":smile:", "[link=a.b]y[/link]", "order=[ocr, geneval]", r"\[x]"]
PRINTING = {"Console", "Progress", "print", "Prompt"}
"""What of rich reads text as markup unless it is told not to (Live is given a console)."""


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")


@pytest.mark.parametrize("columns", ["0", "1", "5", "30"])
def test_a_table_is_shown_in_however_few_columns(columns: str, monkeypatch, capsys, tmp_path: Path) -> None:
    from bench.cli.status import show

    monkeypatch.setenv("COLUMNS", columns)
    (tmp_path / "opd-run").mkdir()
    (tmp_path / "opd-run" / "provenance.jsonl").touch()
    show(tmp_path, watch=False)
    assert "opd-run" in capsys.readouterr().out


def test_only_one_place_makes_terminals() -> None:
    for part in ("bench", "sweeps", "report", "tasks", "methods"):
        for path in sorted(Path(part).rglob("*.py")):
            nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
            imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] == "rich"]
            names = {alias.asname or alias.name for node in imports for alias in node.names if alias.name in PRINTING}
            made = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)} & names
            assert not made or path == Path("bench/printing.py"), f"{path} makes a {made} of rich's"


@pytest.mark.parametrize("text", HOSTILE)
def test_terminals_and_bars_print_text(text: str, capsys) -> None:
    shown = Table(text, title=text)
    shown.add_row(text)
    out = terminal(100)
    out.print(shown)
    out.print(text, soft_wrap=True)
    assert capsys.readouterr().out.count(text) == 4
    with progress_bar() as bars:
        bars.console.file = StringIO()
        bars.add_task(text, total=1)
        bars.refresh()
        bars.console.print(text)
    assert text in capsys.readouterr().err + bars.console.file.getvalue()


def hostile(row: dict, text: str) -> dict:
    return row | {"headline": text, "rows": {text: row["rows"]["m"]}}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_runs_progress_and_table_print_text(text: str, capsys) -> None:
    with Console() as console:
        console.listen(text, Progress(1, 0.5))
        console.say(text)
    assert text in capsys.readouterr().err
    found = record(0, 0.5, [0.5], teachers=True).summary
    found["models"] = {model.replace("teacher t", f"teacher {text}"): {text: hostile(rows["t"], text)}
                       for model, rows in found["models"].items()}  # fmt: skip
    cost = {"evaluations": {}, "seconds": {text: 1.0}}
    print_table([found | {"method": text, "split": "test", "updates": 1, "cost": cost}], Path(text))
    assert capsys.readouterr().out.count(text) >= 4


@pytest.mark.parametrize("text", HOSTILE)
def test_comparisons_print_text(text: str, capsys) -> None:
    runs = [record(seed, 0.5, [0.5], teachers=True) for seed in (0, 1)]
    lines = standings({f"m {text}": runs, "other": runs}, ("t",), f"m {text}", {"t": 1.0})
    print_standings(lines, f"m {text}", ("t",), 1000, "test", Path(text))
    assert capsys.readouterr().out.count(text) >= 3


@pytest.mark.parametrize("text", HOSTILE)
def test_scores_and_states_print_text(text: str, capsys) -> None:
    rows = {text: np.ones(2)}
    print_summary(Evaluation("t", text, np.array([f"a {text}", "b"]), rows), f"title {text}")
    assert capsys.readouterr().out.count(text) >= 3
    terminal().print(table([StatusRow(text, "failed", note=text)]))
    assert capsys.readouterr().out.count(text) == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_probes_print_text(text: str, capsys) -> None:
    estimate = Estimate(1.0, 0.5, 1.5)
    moments = SimpleNamespace(trace=1.0, signal=1.0, from_states=0.5, from_estimator=0.5)
    noise = SimpleNamespace(moments=moments, snr=estimate)
    found = SimpleNamespace(
        label=text, noise=noise, cosine=1.0, slope=estimate, by_sigma={}, interference={text: {"all": 1.0}}
    )
    print_probes([found], text, text)
    assert capsys.readouterr().out.count(text) >= 6


@pytest.mark.parametrize("text", HOSTILE)
def test_a_study_prints_the_command_as_it_is(text: str, capsys) -> None:
    space = {"params.order": {"choices": [text]}}
    spec = StudySpec(name="s", method="sft", budget=1, trials=1, space=space)
    row = {"trial": 0, "values": [0.5], "settings": {"params.order": text}}
    summary = {
        "trials": {"complete": 1}, "objectives": ["mean"], "best": [row], "first": row,
        "importances": {text: 1.0}, "confirmed": [], "chosen": row, "command": f"bench run --set {text}",
    }  # fmt: skip
    show(spec, summary, Place(Path(text)))
    out = capsys.readouterr().out
    assert f"bench run --set {text}" in out
    assert out.count(text) >= 4


def test_what_commands_print(tmp_path: Path) -> None:
    """Paths with tags in them: of results, of an adapter; the evaluation is done when its table is printed."""
    name = "[bold]x[/bold]:smile:"
    settings = ("evaluation.steps=1", "evaluation.split=validation")
    sets = [word for setting in settings for word in ("--set", setting)]
    where = f"results/{name}"
    done = bench(["run", "--method", "merge", "--tasks", "ocr", "--results", where, *sets], tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{where}/merge-" in done.stderr and f"{where}/merge-" in done.stdout
    (adapter,) = (tmp_path / where).glob("merge-*/adapter")
    (tmp_path / "a" / "[").mkdir(parents=True)
    adapter.rename(tmp_path / "a" / "[" / "]:smile:")
    words = ["eval", "--adapter", "a/[/]:smile:", "--tasks", "ocr", "--split", "validation", "--steps", "1"]
    done = bench(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a/[/]:smile: on micro" in done.stdout
    done = bench(["run", "--method", "opd_analytic", "--tasks", "ocr", "--teachers", "a/[", *sets], tmp_path)
    assert done.returncode == 2 and "a/[/ocr" in done.stderr


def test_where_there_is_no_terminal_a_line_comes_every_minute(monkeypatch) -> None:
    """What is finished or has not begun says nothing; a terminal has its bars alone."""
    monkeypatch.setattr("bench.printing.SAYS_EVERY_S", 0.05)
    for terminal_like in (False, True):
        out = StringIO()
        out.isatty = lambda told=terminal_like: told
        monkeypatch.setattr("sys.stderr", out)
        with progress_bar() as shown:
            shown.add_task("later [x]", total=1, start=False)
            shown.add_task("done", total=1, completed=1)
            bar = shown.add_task("half [bold]", total=4)
            shown.update(bar, completed=2)
            deadline = time.monotonic() + 10
            while not terminal_like and out.getvalue().count("half [bold]: 50%") < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.2 if terminal_like else 0)
            text = out.getvalue()
        assert (text.count("half [bold]: 50%, 0:00:0") >= 2) == (not terminal_like)
        assert terminal_like or ("later" not in text and "done" not in text)
    ended = out.getvalue()
    time.sleep(0.15)
    assert out.getvalue() == ended


def test_a_log_says_what_a_run_evaluates_after_its_last_update(monkeypatch) -> None:
    """Which may take longer than the updates: the base and all teachers at every guidance scale."""
    monkeypatch.setattr("bench.printing.SAYS_EVERY_S", 0.05)
    out = StringIO()
    monkeypatch.setattr("sys.stderr", out)

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 10
        while text not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert text in out.getvalue()

    with Console() as console:
        console.listen("run", Progress(8, 0.9))
        wait_for("run: update 8: 90%")
        console.listen("run", Progress(9, 1.0))
        for done in (32, 64):
            doing = f"evaluating the base on ocr, {done} of 64 images"
            console.listen("run", Progress(9, 1.0, doing=doing))
            wait_for(f"run: {doing}: 100%")
        said = out.getvalue()
        time.sleep(0.3)
        assert out.getvalue() == said


def test_an_evaluation_shows_how_far_it_is(monkeypatch) -> None:
    """The bar stays where the last update left it."""
    out = StringIO()
    monkeypatch.setattr("sys.stderr", out)
    with Console() as console:
        console.listen("run", Progress(3, 0.5))
        console.listen("run", Progress(3, 0.4, doing="evaluating the base on ocr, 2 of 8 images"))
        (bar,) = console.progress.tasks
        assert (bar.completed, bar.description) == (0.5, "run: evaluating the base on ocr, 2 of 8 images")
        console.listen("run", Progress(4, 0.6))
        assert (bar.completed, bar.description) == (0.6, "run: update 4")


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_a_table_that_is_too_wide_is_printed_in_parts_that_fit(width: int) -> None:
    def table() -> Table:
        made = Table(title="scores")
        for head in ("line", *(f"task {k}" for k in range(6))):
            made.add_column(head, overflow="fold")
        for k in range(3):
            made.add_row(f"opd_ppo\nadvantage=log_ratio_centred_{k}", *(f"0.{k}{j}0 [0.{k}{j}0, 0.{k}{j}1]" for j in range(6)))
        return made

    console = Plain(in_parts=True, width=width, file=StringIO())
    console.print(table())
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for k in range(3):
        for j in range(6):
            assert text.count(f"0.{k}{j}0 [0.{k}{j}0, 0.{k}{j}1]") == 1  # whole, in one line
    assert text.count("scores") == 1 and text.count("line ") == text.count("┏")
    whole = Plain(width=300, file=StringIO())
    whole.print(table())
    assert (text == whole.file.getvalue()) == (width == 300)
