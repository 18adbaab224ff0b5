"""Gradient noise of estimators by method and noise level, against prediction, and interference of tasks."""

import pandas as pd

from bench.analysis.stats import Estimate
from report.figures import Figure, draw_curve, draw_intervals, row_height, says
from report.style import Look, is_column, logarithmic, looks
from report.table import Column, Row, Table


def noise_parts(title: str, probes: list[dict], name: str) -> list[Table | Figure]:
    """Figure and table of one output of `bench probe`."""
    table = Table(
        name,
        f"Gradient noise: {title}",
        "At a frozen student. The signal-to-noise ratio is |mean|² over the trace of the covariance of one update's "
        "gradient, with a 95% interval over states. The relative mean is the component of the mean along that of the "
        "first estimator, in units of it: 1 if both agree.",
        [
            Column("label", "estimator"),
            Column("kernel", "sampler"),
            Column("sigma", "sigma", "ratio"),
            Column("snr", "signal-to-noise ratio", "ratio"),
            Column("trace", "trace", "ratio"),
            Column("mean_over_first", "relative mean", "ratio"),
        ],
    )
    for probe in probes:
        sampler = f"{probe['sampler']['kernel']} eta {probe['sampler']['eta']:g}"
        slope = probe.get("mean_over_first")
        table.rows.append(_noise(probe["label"], sampler, "all", probe["all"], slope))
        for noise in probe.get("by_sigma", []):
            table.rows.append(_noise(probe["label"], sampler, noise["sigma"], noise, None))
    look = looks([(probe["label"], probe["method"]) for probe in probes])
    return [_noise_figure(table.frame(), look, name), table]


def _noise(label: str, sampler: str, sigma: float | str, noise: dict, slope: list | None) -> dict:
    return {
        "label": label,
        "kernel": sampler,
        "sigma": sigma,
        "snr": Estimate(*noise["snr"]),
        "trace": noise["trace"],
        "mean_over_first": Estimate(*slope) if slope else None,
    }


def pulls_table(title: str, probes: list[dict], name: str) -> Table:
    """Cosines between the tasks' mean gradients at the frozen student."""
    pairs = list(probes[0]["interference"])
    columns = [Column("label", "estimator")]
    # Numbered keys, because a pair's name has spaces and a bar, which are awkward in the name of a CSV column.
    columns += [Column(f"pair_{i}", pair, "change") for i, pair in enumerate(pairs)]
    rows: list[Row] = []
    for probe in probes:
        row: Row = {"label": probe["label"]}
        for i, pair in enumerate(pairs):
            row[f"pair_{i}"] = probe["interference"].get(pair, {}).get("all")
        rows.append(row)
    note = (
        "Cosine similarity between the tasks' mean gradients. That of a task with itself, from independent halves, is "
        "the ceiling."
    )
    return Table(name, f"Interference at a frozen student: {title}", note, columns, rows)


def excess_parts(title: str, results: list[dict], name: str) -> list[Table | Figure]:
    """Figure and table of one output of methods.opd_ppo_excess: measured variance against its closed form."""
    table = Table(
        name,
        f"Excess variance of PPO-style over analytic OPD, measured and predicted: {title}",
        "At a fixed state the analytic gradient has no variance, and the variance of the sampled log-ratio's gradient "
        "has a closed form (methods/opd_ppo_excess.py). The ratio is the mean over states with a 95% interval; it "
        "should be 1.",
        [
            Column("task", "task"),
            Column("kernel", "sampler"),
            Column("sigma", "sigma", "ratio"),
            Column("measured", "measured", "ratio"),
            Column("predicted", "predicted", "ratio"),
            Column("ratio", "measured / predicted", "score"),
            Column("states", "states", "count"),
        ],
    )
    for found in results:
        kernel = f"{found['kernel']} eta {found['eta']:g}"
        where = {"task": found["task"], "kernel": kernel, "states": found["states"]}
        for level in found["by_sigma"]:
            values = {key: level[key] for key in ("sigma", "measured", "predicted")}
            table.rows.append(where | values | {"ratio": Estimate(*level["ratio"])})
        table.rows.append(where | {"sigma": "all", "ratio": Estimate(*found["ratio"])})
    return [_excess_figure(table.frame(), name), table]


def _excess_figure(frame: pd.DataFrame, name: str) -> Figure:
    levels = frame[frame["sigma"] != "all"]

    def draw(width: float):
        import matplotlib.pyplot as plt
        import seaborn

        palette = seaborn.color_palette("colorblind", 10)
        figure, axes = plt.subplots(figsize=(width, min(width, 3.4)))
        lowest = min(levels["predicted"].min(), levels["measured"].min())
        ends = [lowest, levels["predicted"].max()]
        axes.plot(ends, ends, ":", color="0.5", label="measured = predicted")
        groups = levels.groupby(["task", "kernel"], sort=False)
        for i, ((task, kernel), points) in enumerate(groups):
            # Unfilled, because markers on the diagonal overlap when measurement and prediction agree.
            (marks,) = axes.plot(
                points["predicted"],
                points["measured"],
                "osD^vP"[i % 6],
                color=palette[i % 10],
                fillstyle="none",
                label=f"{task}, {kernel}",
            )
            said = [
                f"{task}, {kernel}, sigma {row.sigma:g}: {row.measured!r} measured, {row.predicted!r} predicted"
                for row in points.itertuples()
            ]
            says(marks, said)
        axes.set(xlabel="predicted trace", ylabel="measured trace")
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        axes.legend()
        return figure

    return Figure(
        name,
        "Measured and predicted variance of the sampled log-ratio's gradient at fixed states, by noise level.",
        f"Measured against predicted traces of {len(levels)} noise levels; on the diagonal they agree.",
        draw,
    )


def _noise_figure(frame: pd.DataFrame, look: dict[str, Look], name: str) -> Figure:
    """Signal-to-noise ratio by estimator; by noise level where it was measured."""
    whole, levels = frame[frame["sigma"] == "all"], frame[frame["sigma"] != "all"]

    def draw(width: float):
        import matplotlib.pyplot as plt

        panels = 2 if len(levels) else 1
        narrow = is_column(width)
        height = max(1.8, row_height(whole["label"], narrow) * len(whole) + 0.8)
        # At column width the panels are below each other, otherwise next to each other.
        rows, columns = (panels, 1) if narrow else (1, panels)
        figure, grid = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False)
        axes = grid.flat[0]
        draw_intervals(axes, whole, "label", "snr", look, narrow)
        axes.set(xlabel="signal-to-noise ratio")
        if len(levels):
            for label in whole["label"]:
                points = levels[levels["label"] == label]
                said = [f"{label}, sigma {row['sigma']:g}: {row['snr']!r}" for _, row in points.iterrows()]
                # The column also holds "all", so pandas keeps its numbers as objects.
                sigmas = points["sigma"].astype(float)
                draw_curve(grid.flat[1], sigmas, points["snr"], look[label], said)
            grid.flat[1].set(xlabel="noise level sigma", ylabel="signal-to-noise ratio")
        return figure

    return Figure(
        name,
        "Gradient noise at a frozen student: |mean|² over the trace of the covariance, with a 95% interval over "
        "states, and by noise level with the same markers.",
        f"Signal-to-noise ratios of {len(whole)} gradient estimators; the table has the numbers.",
        draw,
    )
