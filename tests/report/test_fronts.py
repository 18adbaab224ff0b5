"""The section about fronts: its numbers, its figure for two and for three tasks, and when it is absent."""

from pathlib import Path

import numpy as np
import pytest

from bench.analysis.fronts import TEACHERS, front
from bench.analysis.stats import Design
from report.evidence import collect
from report.fronts import front_parts
from report.sections import make
from report.style import WIDTHS, looks
from tests.report.synthetic import TASKS, make_run
from tests.report.test_figures import faults


def section_of(folder: Path):
    return next((section for section in make(collect([folder])).sections if section.title == "Fronts"), None)


def test_lines_with_weights_have_a_section_with_their_hypervolume(tmp_path: Path) -> None:
    for seed in (0, 1):
        for weight, level in ((0.25, 0.3), (1.0, 0.5), (4.0, 0.7)):
            make_run(tmp_path, "multi_reward", seed, level, settings={"weights": {"ocr": weight}}, teachers=False)
        make_run(tmp_path, "opd_analytic", seed, 0.6)
    report = make(collect([tmp_path]))
    tables = {table.name: table for table in report.tables}
    (joint, taught) = tables["fronts"].rows
    assert (joint["front"], joint["points"], joint["seeds"]) == ("Joint RL", 3, 2)
    assert taught["front"] == TEACHERS and taught["best"] == "teacher geneval; teacher ocr"
    points = tables["fronts-points"].frame()
    own = points[points["front"] == "Joint RL"]
    scores = tables["scores"].frame().set_index("line")
    for row in own.to_dict("records"):
        assert [row[task] for task in TASKS] == [scores.loc[row["line"], task] for task in TASKS]
    best = own[own["dominated"] == "no"].sort_values("geneval")
    # Steps from the left: each point adds what is above the next one to its right.
    below = [*best["ocr"][1:], 0.0]
    assert joint["hypervolume"].value == pytest.approx(sum(best["geneval"] * (best["ocr"] - below)))
    assert joint["hypervolume"].low < joint["hypervolume"].value < joint["hypervolume"].high
    assert taught["against"].value == pytest.approx(taught["hypervolume"].value - joint["hypervolume"].value)
    assert "Fronts" in [section.title for section in report.sections]


def test_without_weights_there_is_no_section(tmp_path: Path) -> None:
    make_run(tmp_path, "multi_reward")
    make_run(tmp_path, "multi_reward", settings={"size": 2})
    assert section_of(tmp_path) is None


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("tasks", [("hue_a", "hue_b"), ("geneval", "ocr", "pickscore")])
def test_the_figure_has_a_panel_per_pair_and_can_be_read(tasks: tuple[str, ...], width: float) -> None:
    rng, design = np.random.default_rng(0), Design(np.repeat("", 9), np.arange(9))
    draw = lambda: {task: (rng.random((2, 9)), design) for task in tasks}
    found = [
        front(label, {f"{label} weights.ocr={i}": draw() for i in range(4)})
        for label in ("merge", "opd_analytic size=2")
    ]
    found.append(front(TEACHERS, {f"teacher {task}": draw() for task in tasks}))
    beside = {task: {"base": 0.4, "teacher": 0.9} for task in tasks}
    look = looks([(label, label.split()[0]) for label in ("merge", "opd_analytic size=2")])
    _, figure, points = front_parts(found, tasks, "here", beside, look, "fronts")
    assert faults(figure, width) == []
    svg = figure.html()
    pairs = len(tasks) * (len(tasks) - 1) // 2
    assert svg.count("<title>base: ") == pairs and svg.count("<title>teacher ") == pairs * len(tasks)
    assert svg.count("<title>merge weights.ocr=") == pairs * 4 and len(points.rows) == 8 + len(tasks)
