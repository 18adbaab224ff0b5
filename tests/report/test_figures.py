"""Figures as they are drawn: every label can be read, lies in the figure and runs into no other, at both widths."""

import errno
import math
import os
import signal
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from report.evidence import collect
from report.figures import Figure, curves_figure, draw_all, scores_figure
from report.pictures import Grid
from report.sections import make
from report.style import FONT_TYPE, MOST, WIDTHS, drawing, looks
from tests.report.synthetic import make_probes, make_run, make_study


def faults(figure: Figure, width: float) -> list[str]:
    """What cannot be read in a figure drawn this wide."""
    found = []
    with drawing():
        drawn = figure.draw(width)
        drawn.draw_without_rendering()
        whole = drawn.bbox.padded(2)  # pixels
        for axes in drawn.axes:
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                labels = [tick.label1 for tick in ticks if tick.label1.get_text() and tick.label1.get_visible()]
                labels.sort(key=lambda label: _anchor(label)[int(axis is axes.yaxis)])
                for one, next_ in pairwise(labels):
                    if _touch(one, next_):
                        found.append(f"{one.get_text()!r} runs into {next_.get_text()!r}")
                texts = [*labels, axis.label]
                found += [f"{t.get_text()!r} leaves the figure" for t in texts if _outside(t, whole)]
                found += [f"{t.get_text()!r} is not set" for t in texts if "$" in t.get_text()]
        legends = [*drawn.legends, *(axes.get_legend() for axes in drawn.axes if axes.get_legend())]
        found += [f"{t.get_text()!r} leaves the figure" for e in legends for t in e.get_texts() if _outside(t, whole)]
        beside = [text for axes in drawn.axes for text in axes.texts]
        found += [f"{t.get_text()!r} leaves the figure" for t in beside if _outside(t, whole)]
        found += [f"{a.get_title()!r} leaves the figure" for a in drawn.axes if _outside(a.title, whole)]
        plt.close(drawn)
    return [f"{figure.name}, {width} in: {fault}" for fault in found]


def _anchor(label) -> np.ndarray:
    """Pixels."""
    return label.get_transform().transform(label.get_position())


def _touch(one, other) -> bool:
    """Whether neighbours overlap; slanted ones are apart by what is between their baselines."""
    if angle := math.radians(one.get_rotation()):
        between = math.hypot(*(_anchor(other) - _anchor(one))) * math.sin(angle)
        return between < one.get_size() * one.figure.dpi / 72
    return one.get_window_extent().overlaps(other.get_window_extent())


def _outside(text, whole) -> bool:
    box = text.get_window_extent()
    return bool(text.get_text()) and (box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    folder = tmp_path_factory.mktemp("records")
    for seed in range(2):
        for method in ("opd_analytic", "multi_reward", "cascade", "sft"):
            make_run(folder / "results", method, seed, 0.5)
        make_run(folder / "results", "opd_ppo", seed, 0.4, settings={"advantage": "log_ratio_centred"})
    evidence = collect([folder / "results", *make_probes(folder), make_study(folder)])
    return [figure for figure in make(evidence).figures if not isinstance(figure, Grid)]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_every_label_can_be_read(figures: list[Figure], width: float) -> None:
    assert len(figures) >= 8
    assert [fault for figure in figures for fault in faults(figure, width)] == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_many_tasks_and_lines_can_be_read(width: float) -> None:
    tasks = ["geneval", "ocr", "pickscore", "aesthetic", "clipscore", "drawbench"]
    labels = [f"opd_ppo advantage=log_ratio_centred,eta=0.{i}" for i in range(12)]
    look = looks([(label, "opd_ppo") for label in labels])
    look = {label: replace(style, matters=k < 3) for k, (label, style) in enumerate(look.items())}
    values = {key: 0.1 for task in (*tasks, "mean") for key in (task, f"{task}_low", f"{task}_high")}
    scores = pd.DataFrame([{"line": label} | values for label in labels])
    heads = {task: f"{task}: reward" for task in tasks}
    levels = {task: {"base": 0.05, "teacher": 0.2} for task in tasks}
    points = pd.DataFrame(
        [{"line": label, "task": task, "nfe": 1000.0 * k, "seconds": 10.0 * k, "score": 0.1 * k,
          "score_low": 0.1 * k - 0.05, "score_high": 0.1 * k + 0.05}
         for label in labels for task in tasks for k in (1, 2, 3)]
    )  # fmt: skip
    figures = [
        scores_figure(scores, tasks, heads, look, levels, "scores"),
        curves_figure(points, tasks, look, levels, "c"),
    ]
    assert [fault for figure in figures for fault in faults(figure, width)] == []


def test_fonts_are_embedded_as_venues_take_them(figures: list[Figure], monkeypatch) -> None:
    """TrueType: Type 3 is what submission systems refuse. Text of SVG files is in outlines."""
    monkeypatch.setattr("report.style.FONT_TYPE", FONT_TYPE)
    for name, content in replace(figures[0]).files.items():
        if name.endswith("pdf"):
            assert b"/FontFile2" in content and b"/Type3" not in content
        elif name.endswith("svg"):
            assert b"<text" not in content and b"<path" in content


def test_no_two_lines_of_a_figure_look_the_same() -> None:
    for methods in (
        ["opd_analytic"] * MOST,
        ["multi_reward"] + ["opd_analytic"] * (MOST - 1),
        ["a", "b"] * (MOST // 2),
    ):
        found = looks([(f"{method} {i}", method) for i, method in enumerate(methods)])
        assert len(set(found.values())) == len(methods)


def test_a_label_that_cannot_be_read_is_found() -> None:
    def draw(width: float):
        drawn, axes = plt.subplots(figsize=(width, 2))
        axes.set(xscale="log", xlim=(1e-9, 1e9), xlabel="long " * 100)
        return drawn

    found = " ".join(faults(Figure("bad", "", "", draw), 3.35))
    assert "runs into" in found and "leaves the figure" in found and "is not set" in found


@pytest.mark.parametrize("cause", ["no process", "a killed process"])
def test_figures_are_drawn_where_no_process_draws_them(monkeypatch, cause: str) -> None:
    def refuse(*_, **__):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))  # as where there is no /dev/shm

    here = os.getpid()

    def draw(width: float):
        import matplotlib.pyplot as plt

        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return plt.figure(figsize=(width, 1))

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    if cause == "no process":
        monkeypatch.setattr("report.parallel.ProcessPoolExecutor", refuse)
    drawn = [Figure(f"f{i}", "t", "a", draw) for i in range(2)]
    draw_all(drawn)
    assert all(f"{figure.name}-page.svg" in figure.files for figure in drawn)
