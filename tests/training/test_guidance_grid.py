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

    def of(self, model, adapter, task, weights, guidance, split=None, **more):
        record = honest(self, model, adapter, task, weights, guidance, split, **more)
        asked.append((model, guidance, split or "test", score(record), record))
        return record

    monkeypatch.setattr(references.References, "of", of)
    summary = made(tmp_path, *GRID)
    check_summary(tmp_path / summary["folder"] / "summary.json", summary, ["ocr"])
    for model in ("student", "base", "teacher ocr"):
        tried = {scale: value for who, scale, split, value, _ in asked if who == model and split == "validation"}
        assert [*tried] == [1, 2, 5]
        assert summary["tried"][model]["ocr"] == {f"{scale:g}": value for scale, value in tried.items()}
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


def test_choices_differ_between_models_and_ends_of_the_grid_are_remarked_on(tmp_path: Path) -> None:
    summary = made(tmp_path, *FEW, "evaluation.guidance_grid=[1, 2]")
    scales = {model: found["ocr"] for model, found in summary["guidance"].items()}
    # Without training: the base and a student that is nearly the base need guidance, the teacher none.
    assert scales == {"student": 2, "base": 2, "teacher ocr": 1}
    said = "the best guidance scale of {} on ocr is {}, the {} of evaluation.guidance_grid"
    ends = [("student", 2, "largest"), ("base", 2, "largest"), ("teacher ocr", 1, "smallest")]
    assert [remark for remark in summary["remarks"] if "guidance" in remark] == [said.format(*end) for end in ends]


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


def test_kept_images_are_those_of_the_final_scores(tmp_path: Path) -> None:
    summary = made(tmp_path, *GRID, "evaluation.pictures=true")
    kept = [path for path in (tmp_path / "cache").glob("pictures-*") if path.is_dir()]
    assert len(kept) == 3  # of three models at one scale each
    scale = summary["guidance"]["student"]["ocr"]
    assert scale != 1
    plain = made(tmp_path, *FEW, "evaluation.pictures=true", f"evaluation.guidance={scale}")
    picture = lambda found: min((tmp_path / found["pictures"]["student"]["ocr"]).rglob("*.png")).read_bytes()
    assert picture(summary) == picture(plain)


def test_a_student_with_all_weights_has_a_grid_too(tmp_path: Path) -> None:
    summary = made(tmp_path, *GRID, "full_finetuning=true")
    assert summary["guidance"]["student"]["ocr"] in (1, 2, 5)


def test_the_sheet_is_drawn_at_the_chosen_scales(tmp_path: Path, monkeypatch) -> None:
    from bench.training import sheet

    spec = resolve("opd_analytic", ["ocr"], overrides=[*GRID])
    summary = execute(spec, Session(tmp_path))
    summary["guidance"] = {"student": {"ocr": 2.0}, "base": {"ocr": 5.0}, "teacher ocr": {"ocr": 3.0}}
    drawn = []
    monkeypatch.setattr(sheet, "_paint", lambda groups, path: None)
    honest = sheet.pictures
    monkeypatch.setattr(sheet, "pictures", lambda *given: drawn.append(given[-1]) or honest(*given))
    sheet.contact_sheet(spec, tmp_path, summary)
    assert drawn == [5.0, 3.0, 2.0]  # base, teacher, student


def test_what_a_grid_cannot_do_is_refused_before_anything_runs() -> None:
    grid = "evaluation.guidance_grid=[1,2]"
    with pytest.raises(UsageError, match=r"evaluation.guidance_grid .* params.preference"):
        resolve("multi_reward", ["hue_a", "hue_b"], overrides=[grid, "params.preference=drawn"])
    # The scale is chosen on validation prompts, which suites do not have.
    with pytest.raises(UsageError, match="test prompts only"):
        resolve("merge", ["geneval2"], backbone="sd3", teachers="shipped", overrides=[grid])


def test_a_grid_guides() -> None:
    asked = ("compute.negative_prompt=a red circle",)
    with pytest.raises(UsageError, match="has no effect at guidance scale 1"):
        resolve("opd_analytic", ["ocr"], overrides=[*asked])
    assert resolve("opd_analytic", ["ocr"], overrides=[*asked, "evaluation.guidance_grid=[1,2]"]).compute.negative_prompt


def test_compared_lines_choose_from_the_same_scales(tmp_path: Path, monkeypatch) -> None:
    from bench.cli.comparison_plan import plan_comparison

    monkeypatch.chdir(tmp_path)
    plan = lambda: plan_comparison(
        ["opd_analytic"], ["ocr"], "micro", [0], 1000, [], ["evaluation.guidance_grid=[1,2]"], Path("results/x")
    )
    assert plan().grid == (1, 2)
    with pytest.raises(UsageError, match=r"different scales in evaluation.guidance_grid"):
        plan_comparison(
            ["opd_analytic", "multi_reward"], ["ocr"], "micro", [0], 1000, [],
            ["multi_reward.evaluation.guidance_grid=[1,2]"], Path("results/x"),
        )  # fmt: skip
