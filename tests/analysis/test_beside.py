"""Metrics beside the headline: measures may have gaps, scores may not; lines are told apart by what ends them."""

import numpy as np
import pytest

from bench.analysis.beside import measures, metrics_beside, recorded
from bench.analysis.records import line_settings, model_rows


def summary(**rows: list) -> dict:
    whole = {"official": [1.0, 0.0, 1.0, 0.0]} | rows
    return {
        "models": {"student": {"t": {"task": "t", "headline": "official", "strata": ["a", "a", "b", "b"],
                                     "prompts": [0, 1, 2, 3], "rows": whole}}},
    }  # fmt: skip


def test_measures_are_taken_where_every_run_has_one() -> None:
    runs = [summary(drift=[0.5, None, 0.3, None]), summary(drift=[0.7, 0.9, 0.5, None])]
    values, pictures = model_rows(runs, "student", "t", "drift")
    assert values.tolist() == [[0.5, 0.3], [0.7, 0.5]] and pictures.strata.tolist() == ["a", "b"]
    assert measures(runs, {"t": "student"})["drift"].value == pytest.approx(0.5)
    assert recorded([*runs, summary()], "student", "t") == []  # a run of an older version
    assert recorded([summary(drift=[0.5, None, None, None]), summary(drift=[None, 1.0, None, None])], "student", "t") == []


def test_a_score_with_a_gap_has_no_mean() -> None:
    gap = [summary(strict=[1.0, 1.0, None, None])]
    assert np.isnan(metrics_beside(gap, {"t": "student"})["t: strict"].value)


def test_runs_that_an_alarm_may_end_are_a_line_of_their_own() -> None:
    spec = {"method": "sft", "seed": 1, "evaluation": {"steps": 3}}
    assert line_settings(spec) == {"method": "sft"} == line_settings({**spec, "evaluation": {"stop_on_alarm": False}})
    assert line_settings({**spec, "evaluation": {"stop_on_alarm": True}}) == {"method": "sft", "stop_on_alarm": True}
