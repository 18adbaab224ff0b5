"""Whatever a record holds, the report is made: what is damaged is named, and nothing of it is in a mean."""

import copy
import errno
import json
import os
import random
from pathlib import Path

import pytest

from bench.errors import UsageError
from report.command import report as command
from report.evidence import _Reader, collect
from report.page import write
from report.sections import make
from report.table import Column, Table
from tests.report.synthetic import make_probes, make_run, make_study

pytestmark = pytest.mark.usefixtures("quick_intervals")

UGLY = [
    None, True, -1, 0, 3.5, 10**30, float("nan"), float("inf"), "", "x", "../../x", "<script>", "a\nb", "\x00\x1b", "\ud800",
    "a$x_{$b", "_hidden", [], {}, [1], ["x"], {"a": 1}, [[]], {"a": {"b": None}},
]  # fmt: skip


def places(content, prefix: tuple = ()) -> list[tuple]:
    """Every place of a JSON value, with one item of each list."""
    found = [prefix] if prefix else []
    if isinstance(content, dict):
        parts = content.items()
    elif isinstance(content, list) and content:
        parts = [(0, content[0])]
    else:
        parts = []
    return found + [place for key, part in parts for place in places(part, (*prefix, key))]


def changed(content, place: tuple, value):
    """A copy with another value at a place; KeyError takes it away."""
    whole = copy.deepcopy(content)
    parent = whole
    for key in place[:-1]:
        parent = parent[key]
    if value is KeyError:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return whole


def mutations(content, count: int, seed: int) -> list:
    """As many changes of one place as asked for, drawn from all."""
    every = [(place, value) for place in places(content) for value in (*UGLY, KeyError)]
    return [
        changed(content, place, value) for place, value in random.Random(seed).sample(every, min(count, len(every)))
    ]


def read(path: Path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def put(path: Path, content) -> None:
    if path.suffix == ".jsonl" and isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["spec.json", "summary.json", "evaluations.jsonl", "provenance.jsonl", "probes.jsonl"])
def test_a_changed_run_is_read_or_named(tmp_path: Path, name: str) -> None:
    for seed in range(2):
        run = make_run(tmp_path, "opd_analytic", seed)
        make_run(tmp_path, "cascade", seed, 0.3)
    put(run / "probes.jsonl", [{"share": 0.5, "interference": {"geneval | ocr": {"all": 0.25}}}])
    good = read(run / name)
    named, said = 0, set()
    for content in mutations(good, 150, seed=1):
        put(run / name, content)
        evidence = collect([tmp_path])
        assert len(evidence.runs) + len(evidence.problems) == 4
        if evidence.problems:
            named += any(run.name in problem for problem in evidence.problems)
            if (problems := tuple(evidence.problems)) in said:
                continue  # the same runs and the same words: the same report
            said.add(problems)
        report = make(evidence)  # raises nothing
        assert next(table for table in report.tables if table.name == "runs").rows
    assert named > 20


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1", '"x"', "[" * 50_000, "\ud800".encode(errors="surrogatepass")]
)
@pytest.mark.parametrize("name", ["spec.json", "summary.json", "evaluations.jsonl", "provenance.jsonl", "probes.jsonl"])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str, text: str | bytes) -> None:
    run = make_run(tmp_path, "sft", 0)
    make_run(tmp_path, "merge", 0)
    (run / name).write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())
    evidence = collect([tmp_path])
    (problem,) = evidence.problems or [""]
    whole = name.endswith("jsonl") and text in ("", "[]")
    assert problem.startswith(f"{run.name}: damaged") or (whole and not problem), problem
    make(evidence)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [10**400, 1e999, 10**308, 2**64], ids=["10^400", "inf", "10^308", "2^64"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("spec.json", ("spec", "params", "order")),
        ("spec.json", ("spec", "optimizer", "lr")),
        ("spec.json", ("spec", "seed")),
        ("spec.json", ("spec", "evaluation", "guidance")),
        ("summary.json", ("cost", "evaluations", "training")),
        ("summary.json", ("cost", "seconds", "idle")),
        ("summary.json", ("models", "student", "ocr", "rows", "exact", 0)),
        ("summary.json", ("models", "student", "ocr", "prompts", 0)),
        ("summary.json", ("teachers", "ocr", "evaluations")),
        ("evaluations.jsonl", (0, "share")),
        ("evaluations.jsonl", (0, "step")),
        ("probes.jsonl", (0, "interference", "geneval | ocr", "all")),
    ],
)
def test_a_number_beyond_all_measure_is_shown_or_named(tmp_path: Path, name: str, place: tuple, number: float) -> None:
    """What no float holds names the run as damaged, wherever it stands; below that there is a page."""
    run = make_run(tmp_path, "opd_analytic", 0)
    make_run(tmp_path, "cascade", 0, 0.3)
    put(run / "probes.jsonl", [{"share": 0.5, "interference": {"geneval | ocr": {"all": 0.25}}}])
    put(run / name, changed(read(run / name), place, number))
    evidence = collect([tmp_path])
    assert evidence.problems or abs(number) <= 10**308 or name == "spec.json" or place == (0, "step")
    if number == 10**400:
        assert [problem.startswith(f"{run.name}: damaged ({name}: ") for problem in evidence.problems] == [True]
    for table in make(evidence).tables:
        assert table.html() and table.latex()


@pytest.mark.parametrize("kind", ["noise.json", "excess.json", "study", "comparison-x.json"])
def test_other_records_with_a_number_beyond_every_float_are_refused(tmp_path: Path, kind: str) -> None:
    make_probes(tmp_path)
    path, place = {
        "noise.json": (tmp_path / kind, (0, "params", "weighting")),
        "excess.json": (tmp_path / kind, (0, "by_sigma", 0, "ratio", 0)),
        "study": (make_study(tmp_path) / "summary.json", ("complete", 0, "settings", "optimizer.lr")),
        "comparison-x.json": (tmp_path / kind, ("lines", 0, "teacher_evaluations")),
    }[kind]
    if kind == "comparison-x.json":
        put(path, {"lines": [{"label": "a", "runs": [], "teacher_evaluations": 5.0}]})
    unmeasured = ["Infinity"] if kind in ("study", "comparison-x.json") else []  # elsewhere a ratio may be one
    text = json.dumps(changed(read(path), place, "here"))
    for number in ("1" + "0" * 400, "-1" + "0" * 5000, *unmeasured):
        path.write_text(text.replace('"here"', number))
        with pytest.raises(UsageError, match=r"too large|infinite|finite number"):
            collect([path.parent if kind == "study" else path])


def test_numbers_in_texts_are_no_numbers(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0, prompt="9" * 400)
    assert collect([tmp_path]).problems == []


def _closed(folder: Path, monkeypatch) -> None:
    """A folder that may not be entered, as another user's: root may enter all."""
    real = Path.stat

    def stat(self, **how):
        if folder in self.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, **how)

    monkeypatch.setattr(Path, "stat", stat)


def test_a_folder_that_may_not_be_entered_costs_itself_alone(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path / "r", "sft", 0)
    other = tmp_path / "r" / "other"
    other.mkdir()
    put(tmp_path / "r" / "comparison-x.json", {
        "lines": [{"label": "a", "runs": [run.name, "other"], "teacher_evaluations": 5.0}]
    })  # fmt: skip
    _closed(other, monkeypatch)
    for path in (tmp_path / "r", tmp_path / "r" / "comparison-x.json"):
        evidence = collect([path])
        assert [found.name for found in evidence.runs] == [run.name]
        (problem,) = evidence.problems
        assert problem.startswith("other: ") and "Permission denied" in problem
    with pytest.raises(UsageError, match=r"other cannot be read: .*Permission denied"):
        collect([other])


@pytest.mark.parametrize("what", ["damaged", "closed", "empty"])
def test_what_could_not_be_read_is_told_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch, capsys, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (Path("results/runs")).mkdir(parents=True)
    if what == "damaged":
        (make_run(Path("results/runs"), "sft", 0, name="mine") / "spec.json").write_text("{")
    elif what == "closed":
        Path("results/runs/mine").mkdir()
        _closed(Path("results/runs/mine"), monkeypatch)
    command([], Path("out"), None)
    said = capsys.readouterr().err
    if what == "empty":
        assert said == "nothing to report in results/runs: no run, comparison, study or output of bench probe\n"
    else:
        first, second = said.splitlines()
        assert first == "nothing could be read in results/runs:"
        assert second.startswith("  mine: ")
    assert "mine: " in Path("out/report.md").read_text() or what == "empty"
    command(None, Path("difference"), (Path("results/runs"), Path("results/runs")))
    assert capsys.readouterr().err == said + said


@pytest.mark.parametrize("kind", ["noise.json", "excess.json", "study", "comparison-x.json"])
def test_other_changed_records_are_read_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    make_probes(tmp_path)
    run = make_run(tmp_path / "results", "sft", 0)
    if kind == "study":
        path = make_study(tmp_path) / "summary.json"
    elif kind.startswith("comparison"):
        path = tmp_path / "results" / kind
        put(
            path,
            {"lines": [{"label": "a", "runs": [run.name], "teacher_evaluations": 5.0}], "lines_without_result": []},
        )
    else:
        path = tmp_path / kind
    named = path.parent if kind == "study" else path
    good, refused = read(path), 0
    for content in mutations(good, 200, seed=2):
        put(path, content)
        try:
            evidence = collect([named])
        except UsageError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        make(evidence)
    assert refused > 20


def test_ugly_labels_are_drawn_and_written(tmp_path: Path) -> None:
    labels = [value for value in UGLY if isinstance(value, str) and value != "\ud800"] + [
        "base at its best guidance",
        "[x]",
        "| & % # \\ ~ ^",
        "🦊 עברית",
    ]
    lines = []
    for k, label in enumerate(labels):
        runs = [make_run(tmp_path, "opd_analytic", seed, 0.05 * k, settings={"k": k}).name for seed in range(2)]
        lines.append({"label": label, "runs": runs, "teacher_evaluations": 5.0})
    put(tmp_path / "comparison-x.json", {"lines": lines})
    page = write(make(collect([tmp_path])), tmp_path / "out")
    scores = (page.parent / "tables" / "scores.md").read_text()
    assert "<script>" not in scores
    assert "<script>" not in (page.parent / "report.md").read_text()
    rows = scores.partition("\n\n")[0].replace("\\|", "").splitlines()
    assert {line.count(" | ") for line in rows} == {rows[1].count(" | ")}
    assert "_hidden" in (page.parent / "figures" / "curves-page.svg").read_text()
    body = (page.parent / "tables" / "scores.tex").read_text().split("\\midrule")[1].split("\\bottomrule")[0]
    rows = [row for row in body.strip().splitlines()]
    assert len(rows) == len(labels) + 4  # base, two teachers, each on its own
    assert all(row.endswith("\\\\") and "🦊" not in row and not row.startswith("[") for row in rows)


def test_a_damaged_study_or_comparison_among_runs_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0)
    (make_study(tmp_path) / "summary.json").write_text("{")
    (tmp_path / "comparison-x.json").write_text("[]")
    problems = collect([tmp_path]).problems
    assert any(problem.startswith("study a-study: damaged") for problem in problems)
    assert any(problem.startswith("comparison-x.json: damaged") for problem in problems)
    (tmp_path / "comparison-y.json").mkdir()
    assert "comparison-y.json: damaged (it is a folder, not a file)" in collect([tmp_path]).problems


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("how", ["file", "below a file", "a folder in the way", "a link"])
def test_an_output_that_cannot_be_is_refused(tmp_path: Path, how: str) -> None:
    report = make(collect([make_run(tmp_path, "sft", 0)]))
    out = tmp_path / "out"
    if how == "a link":
        out.mkdir()
        (tmp_path / "outside").mkdir()
        (out / "tables").symlink_to(tmp_path / "outside")
    elif how == "a folder in the way":
        (out / "index.html").mkdir(parents=True)
    else:
        out.write_text("")
        out = out if how == "file" else out / "deeper"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Exception, match="report") as caught:
        write(report, out)
    if how != "a folder in the way":  # found when the page is written, the last of its files
        assert sorted(tmp_path.rglob("*")) == before
    assert caught.type.__name__ in ("UsageError", "BenchError")
    assert not (tmp_path / "outside" / "scores.csv").exists()


@pytest.mark.usefixtures("undrawn")
def test_what_an_earlier_report_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for method in ("opd_analytic", "sft"):
        make_run(tmp_path / "a", method, 0)
        make_run(tmp_path / "a", method, 0, budget=9000)
    make_run(tmp_path / "b", "sft", 0)
    out = tmp_path / "out"
    write(make(collect([tmp_path / "a"])), out)
    assert (out / "tables" / "2-scores.csv").exists()
    for kept in ("tables/mine.csv", "notes.txt"):
        (out / kept).write_text("mine")
    write(make(collect([tmp_path / "b"])), out)
    assert not list(out.glob("*/2-*"))
    assert (out / "tables" / "mine.csv").read_text() == (out / "notes.txt").read_text() == "mine"


def test_two_studies_of_one_name_keep_apart(tmp_path: Path) -> None:
    folders = [make_study(tmp_path / side, "same", objectives=("ocr",)) for side in "ab"]
    page = write(make(collect(folders)), tmp_path / "out")
    tables = {path.stem for path in (page.parent / "tables").glob("*.csv")}
    assert {"study-same", "study-same-2"} <= tables


@pytest.mark.usefixtures("undrawn")
def test_a_report_overwrites_no_run_and_no_file_of_another(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sft", 0)
    report = make(collect([run]))
    with pytest.raises(UsageError, match="is the folder of a run"):
        write(report, run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.md").write_text("mine")
    with pytest.raises(UsageError, match="does not belong to an earlier report"):
        write(report, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["report.md"]
    assert (tmp_path / "mine" / "report.md").read_text() == "mine"


def test_what_is_neither_a_folder_nor_a_record_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a folder nor a record"):
        collect([tmp_path / "pipe"])


def test_what_is_damaged_is_named_with_its_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sft", 0)
    (run / "summary.json").write_text('{"a": ')
    lost = make_run(tmp_path, "sft", 1)
    (lost / "spec.json").unlink()
    problems = collect([tmp_path]).problems
    assert any(f"{run.name}: damaged (summary.json: it is not JSON" in problem for problem in problems)
    assert f"{lost.name}: damaged (spec.json is missing)" in problems


def test_wrong_words_are_answered_in_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "results" / "a", "sft", 0)
    with pytest.raises(UsageError, match="--diff takes exactly two results folders"):
        command(None, Path("out"), (Path("results/a"), Path("-o")))
    command([], Path("results/report"), None)
    assert "nothing to report in results/runs" in capsys.readouterr().err


def test_an_upright_stroke_in_a_head_is_no_cell() -> None:
    lines = (
        Table("t", "t", "", [Column("a", "x | y"), Column("b", "b")], [{"a": "1 | 2", "b": "3"}])
        .markdown()
        .splitlines()
    )
    assert [line.replace("\\|", "").count("|") for line in lines] == [3, 3, 3]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("refused", [False, True])
def test_many_runs_are_read_in_parallel_and_say_the_same(tmp_path: Path, monkeypatch, refused: bool) -> None:
    """Damaged ones among them, and where there can be no further process."""

    def refuse(*_, **__):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    for seed in range(6):
        make_run(tmp_path / "results", seed=seed, state="unfinished" if seed == 4 else "done")
    (first, second, *_) = sorted((tmp_path / "results").iterdir())
    (first / "summary.json").write_text("{")
    (second / "provenance.jsonl").write_text("[]\n")
    alone = collect([tmp_path / "results"])
    monkeypatch.setattr("report.evidence.FEW", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    used = []
    if refused:
        monkeypatch.setattr("report.parallel.ProcessPoolExecutor", refuse)
    monkeypatch.setattr("report.evidence._Reader._read", lambda *given, own=_Reader._read: used.append(1) or own(*given))
    together = collect([tmp_path / "results"])
    assert together.problems == alone.problems and len(alone.problems) == 2
    assert len(used) == (6 if refused else 0)  # in this process
    assert [run.folder for run in together.runs] == [run.folder for run in alone.runs]
    pages = [write(make(found), tmp_path / str(i)).read_bytes() for i, found in enumerate((alone, together))]
    assert pages[0] == pages[1]
