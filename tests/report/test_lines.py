"""Which runs are one line, which lines compare, and what they are called."""

import json
from pathlib import Path

import pytest

from report.evidence import collect
from report.lines import pools
from report.sections import make
from report.tables import pool_tables
from tests.report.synthetic import TASKS, make_run


def found(*roots: Path):
    return pools(collect(list(roots)))


def test_lines_compare_at_one_budget_the_one_of_most_methods_first(tmp_path: Path) -> None:
    for seed in range(2):
        for method in ("opd_analytic", "sft"):
            make_run(tmp_path, method, seed, budget=1000 if method == "sft" else 1030)
    for k in range(4):
        make_run(tmp_path, "opd_analytic", 0, budget=250, settings={"k": k})
    make_run(tmp_path, "merge", 0, budget=0)
    first, second = found(tmp_path)
    assert [line.label for line in first.lines] == ["merge", "opd_analytic", "sft"]  # what trains nothing is here
    assert first.budget == 1030
    assert [line.label for line in second.lines] == [f"opd_analytic k={k}" for k in range(4)]
    assert second.budget == 250


def test_what_spent_on_rl_what_others_spent_with_teachers_is_compared_with_them(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, "opd_analytic", seed, budget=1000)  # and 500 a teacher
        make_run(tmp_path, "sft", seed, budget=1000)
        make_run(tmp_path, "multi_reward", seed, budget=1000, teachers=False)
        make_run(tmp_path, "multi_reward", seed, budget=1960, teachers=False)
    short, long, whole = found(tmp_path)
    assert [line.label for line in short.lines] == ["multi_reward", "opd_analytic", "sft"]
    assert [line.label for line in long.lines] == ["multi_reward"]
    assert whole.whole
    assert [line.label for line in whole.lines] == ["opd_analytic", "sft", "multi_reward at 1,960"]
    assert whole.folders["multi_reward at 1,960"] == long.folders["multi_reward"]


def test_labels_say_what_is_not_usual(tmp_path: Path) -> None:
    for lr, eta in ((1, 0), (1, 1), (2, 0), (1, 0.5)):
        make_run(tmp_path, "opd_analytic", 0, settings={"lr": lr, "eta": eta})
    make_run(tmp_path, "sft", 0, settings={"lr": 7})
    (pool,) = found(tmp_path)
    labels = [line.label for line in pool.lines]
    assert labels == ["opd_analytic", "opd_analytic eta=0.5", "opd_analytic eta=1", "opd_analytic lr=2", "sft"]


def test_a_comparisons_label_holds_unless_two_disagree(tmp_path: Path) -> None:
    names = [make_run(tmp_path, "sft", 0, settings={"lr": lr}).name for lr in (1, 2)]
    line = lambda label, name: {"label": label, "runs": [name], "teacher_evaluations": 7.0}
    write = lambda file, *lines: (tmp_path / f"comparison-{file}.json").write_text(json.dumps({"lines": lines}))
    write("a", line("short", names[0]), line("long", names[1]))
    (pool,) = found(tmp_path)
    assert [line.label for line in pool.lines] == ["long", "short"]
    assert {line.teacher_nfe for line in pool.lines} == {7.0}
    write("b", line("other", names[1]))
    (pool,) = found(tmp_path)
    assert [line.label for line in pool.lines] == ["sft lr=2", "short"]


def test_what_teachers_cost_may_be_unknown(tmp_path: Path) -> None:
    name = make_run(tmp_path, "sft", 0).name
    line = {"label": "sft", "runs": [name], "teacher_evaluations": float("nan")}
    (tmp_path / "comparison-a.json").write_text(json.dumps({"lines": [line]}))
    evidence = collect([tmp_path / "comparison-a.json"])
    assert evidence.problems == []
    assert pools(evidence)[0].lines[0].teacher_nfe == 1000  # the run's own record knows


def test_a_seed_found_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    for side in ("a", "b"):
        make_run(tmp_path / side, "sft", 0)
    make_run(tmp_path / "b", "sft", 1)
    (pool,) = found(tmp_path / "a", tmp_path / "b")
    assert [r.summary["seed"] for r in pool.lines[0].records] == [0, 1]
    assert [run.folder.parent.name for run in pool.repeated] == ["b"]
    assert [run.folder.parent.name for run in pool.folders["sft"]] == ["a", "b"]


def test_scores_of_other_scorers_are_not_compared(tmp_path: Path) -> None:
    """But those of one scorer on another machine are."""
    for name, settings in (("a", {}), ("b", {"url": "http://there"}), ("c", {"model": "other"})):
        folder = make_run(tmp_path / name, "opd_analytic", 0)
        record = json.loads((folder / "spec.json").read_text())
        record["spec"]["scorers"] = {TASKS[0]: settings} if settings else {}
        (folder / "spec.json").write_text(json.dumps(record))
    _, other = found(*(tmp_path / name for name in "abc"))
    assert sum(len(line.records) for line in other.lines) == 1
    assert f"scorers {TASKS[0]}.model=other" in other.place


def test_teachers_of_compared_students_are_no_comparison_of_their_own(tmp_path: Path) -> None:
    def teach(seed: int, **settings: int) -> None:
        path = make_run(tmp_path, "single_task", seed, teachers=False, settings=settings) / "spec.json"
        content = json.loads(path.read_text())
        content["spec"]["evaluation"]["split"] = "validation"
        path.write_text(json.dumps(content))

    def sections() -> set[str]:
        page = make(collect([tmp_path]))
        return {section.title for section in page.sections if "validation prompts" in "".join(section.markdown)}

    everywhere = {"Key results", "Scores and cost", "Anytime curves", "Diversity and drift", "Provenance"}

    teach(0), teach(1)
    assert sections() >= everywhere  # nothing else is there
    make_run(tmp_path, "opd_analytic", 0)
    assert sections() == {"Key results", "Over-optimisation", "Provenance"}
    # Two settings are compared with each other.
    teach(0, lr=1)
    assert sections() >= everywhere


@pytest.mark.parametrize("part", ["split", "steps", "guidance"])
def test_what_is_evaluated_otherwise_is_another_world(tmp_path: Path, part: str) -> None:
    make_run(tmp_path, "sft", 0)
    other = make_run(tmp_path, "merge", 0)
    spec = json.loads((other / "spec.json").read_text())
    spec["spec"]["evaluation"][part] = {"split": "validation", "steps": 3, "guidance": 2.5}[part]
    (other / "spec.json").write_text(json.dumps(spec))
    assert [[line.label for line in pool.lines] for pool in found(tmp_path)] == [["sft"], ["merge"]] or [
        ["merge"],
        ["sft"],
    ]
    assert len({pool.world for pool in found(tmp_path)}) == 2


def test_missing_seeds_are_those_of_the_same_budget(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path, "opd_analytic", seed)
    make_run(tmp_path, "sft", 1)
    make_run(tmp_path, "sft", 5, budget=9000)
    first, other = found(tmp_path)
    assert first.missing_seeds == {"sft": [0, 2]}
    assert other.missing_seeds == {}
    assert first.tasks == TASKS


def test_a_line_evaluated_at_its_end_only_has_nothing_to_forget(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path, "opd_analytic", seed)
        make_run(tmp_path, "sft", seed, points=(1.0,))
    table = pool_tables(found(tmp_path)[0], "").forgetting
    assert {row["line"] for row in table.rows} == {"opd_analytic"}
