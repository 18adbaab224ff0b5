"""Scores by tag are the means of its images, and a tag on which a line ends below the base is named on the first page."""

import json
import shutil
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.stats import Design, estimate, holm, paired_difference
from report.evidence import collect
from report.lines import pools, titled
from report.page import write
from report.sections import make
from report.tables import BASE, TEACHERS
from report.tags import below_table, tags_table
from tests.report.synthetic import STRATA, TITLES, make_run

SEEDS = 4
COUNT = 24
"""Images of each of geneval's two tags."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Joint RL has .9 of tag a and .1 of tag b, of which the base has .2 and .7; distillation is above it in both."""
    root = tmp_path_factory.mktemp("tags") / "results"
    levels = {"multi_reward": (0.9, 0.1), "opd_analytic": (0.8, 0.9)}
    for seed in range(SEEDS):
        for method, by_tag in levels.items():
            folder = make_run(root, method, seed, points=(1.0,))
            summary = json.loads((folder / "summary.json").read_text())
            last = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
            rng = np.random.default_rng([seed, len(method)])
            for model, of_model in summary["models"].items():
                own = by_tag if model == "student" else (0.2, 0.7) if model == "base" else (0.9, 0.95)
                draws = rng if model == "student" else np.random.default_rng(5)
                values = np.concatenate([draws.random(COUNT) < level for level in own]).astype(float).tolist()
                record = {"task": "geneval", "headline": "official", "strata": ["a"] * COUNT + ["b"] * COUNT}
                record |= {"rows": {"official": values, "reward": values}, "prompts": [i // 2 for i in range(2 * COUNT)]}
                of_model["geneval"] = record
            last = [row | (summary["models"]["student"]["geneval"] if row["task"] == "geneval" else {}) for row in last]
            (folder / "summary.json").write_text(json.dumps(summary))
            (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in last))
    return root


def of_tag(root: Path, method: str, model: str, tag: str) -> tuple[np.ndarray, Design]:
    """The values [S, N] of a model's images of a tag, and their prompts."""
    rows = [json.loads(path.read_text())["models"][model]["geneval"] for path in sorted(root.glob(f"{method}-*/summary.json"))]
    own = np.array(rows[0]["strata"]) == tag
    design = Design(np.array([tag] * own.sum()), np.array(rows[0]["prompts"])[own])
    return np.array([row["rows"]["official"] for row in rows])[:, own], design


def test_scores_by_tag_are_those_of_its_images(root: Path) -> None:
    (pool, *_) = map(titled, pools(collect([root])))
    table = tags_table(pool, "2-")
    assert table is not None and table.name == "2-tags"
    assert [column.key for column in table.columns] == ["line", "geneval a", "geneval b"]  # ocr has no tags
    rows = {row["line"]: row for row in table.rows}
    assert rows.keys() == {TITLES["opd_analytic"], TITLES["multi_reward"], BASE, TEACHERS}
    for method in ("opd_analytic", "multi_reward"):
        for tag in "ab":
            values, design = of_tag(root, method, "student", tag)
            assert astuple(rows[TITLES[method]][f"geneval {tag}"]) == pytest.approx(astuple(estimate(values, design)))
    base, design = of_tag(root, "multi_reward", "base", "b")
    assert astuple(rows[BASE]["geneval b"]) == pytest.approx(astuple(estimate(base[:1], design)))  # the same in all runs
    assert rows[TEACHERS]["geneval a"].value == pytest.approx(of_tag(root, "multi_reward", "teacher geneval", "a")[0].mean())


def test_a_tag_of_one_prompt_is_not_tested(root: Path, tmp_path: Path) -> None:
    copy, one = shutil.copytree(root, tmp_path / "results"), [i // 2 for i in range(COUNT)] + [COUNT // 2] * COUNT
    of_all = json.dumps([i // 2 for i in range(2 * COUNT)])
    for path in (*copy.rglob("summary.json"), *copy.rglob("evaluations.jsonl")):
        text = path.read_text()
        assert of_all in text
        path.write_text(text.replace(of_all, json.dumps(one)))
    found = collect([copy])
    assert not found.problems
    (pool, *_) = map(titled, pools(found))
    assert below_table(pool, "") is None  # the fall of tag b is that of one prompt


def test_a_tag_below_the_base_is_named_and_corrected_for_all(root: Path, tmp_path: Path) -> None:
    (pool, *_) = map(titled, pools(collect([root])))
    (row,) = below_table(pool, "").rows
    assert (row["line"], row["task"], row["tag"]) == ("Joint RL", "geneval", "b")
    student, design = of_tag(root, "multi_reward", "student", "b")
    base, _ = of_tag(root, "multi_reward", "base", "b")
    gap = paired_difference(student, base[:1], design)
    assert row["change"] == gap and gap.value == pytest.approx(student.mean() - base.mean()) and gap.value < -0.4
    assert row["p"] == pytest.approx(holm([gap.p, 1, 1, 1])[0])  # two lines of two tags
    text = write(make(collect([root])), tmp_path / "report").with_name("report.md").read_text()
    assert "At 1,000 NFE lines end below the base on some tags: Joint RL on geneval b." in text
    assert (tmp_path / "report" / "tables" / "below-base.csv").is_file() and (tmp_path / "report" / "tables" / "tags.tex").is_file()


def test_nothing_is_said_without_tags_or_without_a_loss(root: Path, tmp_path: Path) -> None:
    for path in root.glob("multi_reward-*/summary.json"):
        (tmp_path / path.parent.name).mkdir()
        summary = json.loads(path.read_text())
        summary["models"]["base"]["geneval"]["rows"]["official"] = [0.0] * 2 * COUNT
        for name in ("spec.json", "provenance.jsonl", "evaluations.jsonl"):
            (tmp_path / path.parent.name / name).write_text(path.with_name(name).read_text())
        (tmp_path / path.parent.name / "summary.json").write_text(json.dumps(summary))
    (pool,) = pools(collect([tmp_path]))
    assert tags_table(pool, "") is not None and below_table(pool, "") is None
    (run, *_) = sorted(root.glob("multi_reward-*-s0"))
    (alone,) = pools(collect([run]))
    assert tags_table(alone, "") is not None and below_table(alone, "") is None  # one seed
    for path in tmp_path.glob("*/*.json*"):
        if path.name in ("summary.json", "evaluations.jsonl"):
            path.write_text(path.read_text().replace('"b"', '"a"'))
    (pool,) = pools(collect([tmp_path]))
    assert tags_table(pool, "") is None and below_table(pool, "") is None
    assert set(STRATA["ocr"]) == {""}
