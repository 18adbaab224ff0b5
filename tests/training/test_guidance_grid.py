"""evaluation.guidance_grid: final scores of every model at its own best scale, chosen on validation prompts."""

import json
from pathlib import Path

import pytest

from bench.analysis.comparison import targets
from bench.analysis.records import Record, score
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.store.shapes import check_summary
from bench.training import references
from bench.training.execute import Session, execute

FEW = ("evaluation.steps=2", "budget.updates=2", "params.trajectories=2", "sampler.steps=2", "evaluation.points=[1.0]")
GRID = (*FEW, "evaluation.guidance_grid=[1, 2, 5]")


def made(folder: Path, *overrides: str, tasks: tuple[str, ...] = ("ocr",)) -> dict:
    return execute(resolve("opd_analytic", [*tasks], overrides=[*overrides]), Session(folder))


def test_final_scores_are_at_the_scale_that_is_best_on_validation_prompts(tmp_path: Path, monkeypatch) -> None:
    asked: list[tuple] = []
    honest = references.References.of

    def of(self, model, adapter, task, weights, guidance, split=None):
        record = honest(self, model, adapter, task, weights, guidance, split)
        asked.append((model, guidance, split or "test", score(record), record))
        return record

    monkeypatch.setattr(references.References, "of", of)
    summary = made(tmp_path, *GRID)
    check_summary(tmp_path / summary["folder"] / "summary.json", summary, ["ocr"])
    for model in ("student", "base", "teacher ocr"):
        tried = {scale: value for who, scale, split, value, _ in asked if who == model and split == "validation"}
        assert [*tried] == [1, 2, 5]
        best = summary["guidance"][model]["ocr"]
        assert best == max(tried, key=tried.get)
        (final,) = [r for who, scale, split, _, r in asked if (who, scale, split) == (model, best, "test")][:1]
        assert summary["models"][model]["ocr"] == final
        assert len(final["strata"]) == 192
    # Along training: the student's last point and the rivals at the student's scale.
    rows = [json.loads(line) for line in (tmp_path / summary["folder"] / "evaluations.jsonl").read_text().splitlines()]
    assert summary["along"]["student"]["ocr"]["rows"] == rows[-1]["rows"]
    usual = [r for who, scale, split, _, r in asked if (who, scale, split) == ("teacher ocr", 1.0, "test")]
    assert summary["along"]["teacher ocr"]["ocr"] == usual[-1]


def test_choices_differ_between_models_and_the_largest_scale_is_remarked_on(tmp_path: Path) -> None:
    summary = made(tmp_path, *FEW, "evaluation.guidance_grid=[1, 2]")
    scales = {model: found["ocr"] for model, found in summary["guidance"].items()}
    # Without training: the base and a student that is nearly the base need guidance, the teacher none.
    assert scales == {"student": 2, "base": 2, "teacher ocr": 1}
    said = "the best guidance scale of {} on ocr is 2, the largest of evaluation.guidance_grid"
    assert [remark for remark in summary["remarks"] if "guidance" in remark] == [said.format("student"), said.format("base")]


def test_a_finished_evaluation_is_not_made_again(tmp_path: Path, monkeypatch) -> None:
    first = made(tmp_path, *GRID)
    (tmp_path / first["folder"] / "summary.json").unlink()
    from bench.training.loop import Loop

    monkeypatch.setattr(Loop, "evaluate", lambda *_, **__: pytest.fail("evaluated again"))
    second = made(tmp_path, *GRID)
    assert {k: v for k, v in second.items() if k != "cost"} == {k: v for k, v in first.items() if k != "cost"}


def test_targets_along_training_are_the_teachers_at_the_same_scale() -> None:
    def model(value: float) -> dict:
        return {"ocr": {"task": "ocr", "headline": "exact", "strata": ["a"] * 2, "rows": {"exact": [value, value]}}}

    final = {"student": model(0.8), "base": model(0.5), "teacher ocr": model(1.0)}
    along = {"student": model(0.6), "base": model(0.2), "teacher ocr": model(0.7)}
    record = {"models": final, "along": along, "seed": 0}
    assert targets([record], ("ocr",)) == pytest.approx({"ocr": 0.63})
    assert targets([{"models": final, "seed": 0}], ("ocr",)) == pytest.approx({"ocr": 0.9})
    assert Record(record, [], {}).summary is record


@pytest.mark.parametrize(
    ("grid", "said"),
    [("[2, 1]", "in ascending order, not 2, 1"), ("[1, 1]", "once"), ("[1]", "two scales or more"), ("[-1, 2]", "guidance_grid")],
)
def test_grids_that_cannot_be_meant_are_refused(grid: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve("opd_analytic", ["ocr"], overrides=[f"evaluation.guidance_grid={grid}"])


def test_a_spec_without_a_grid_has_the_hash_of_stored_runs() -> None:
    spec = resolve("opd_analytic", ["ocr"])
    assert "guidance_grid" not in spec.record()["evaluation"]
    with_grid = resolve("opd_analytic", ["ocr"], overrides=["evaluation.guidance_grid=[1, 2]"])
    assert spec.digest("x") != with_grid.digest("x")
    assert with_grid.record()["evaluation"]["guidance_grid"] == [1, 2]
