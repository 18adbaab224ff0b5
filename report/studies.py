"""Results of a study: its trials, the best one or the Pareto front, and the effect of each setting."""

import math
from itertools import combinations

import pandas as pd

from report.figures import Figure, says
from report.style import is_column, logarithmic
from report.table import Column, Kind, Row, Table


def study_parts(study: dict, name: str) -> list[Table | Figure]:
    """Tables and figures of one study's summary.json, named after `name`; none if no trial finished."""
    if not study["complete"]:
        return []
    objectives = study["objectives"]
    again = [row for row in study.get("confirmed", []) if row["value"] is not None]
    # Several objectives have a front of best trials. With one, trials that tie with the best are not chosen.
    best_trials = study["best"] if len(objectives) > 1 else again[:1] or study["best"][:1]
    chosen = {trial["trial"] for trial in best_trials}
    trials = _trials(study, name, chosen, bool(again))
    frame = trials.frame().sort_values("trial")
    best = frame["trial"].isin(chosen)
    parts: list[Table | Figure] = [trials]
    if again:
        parts.append(_confirmation(study, again, f"{name}-confirmed"))
    if len(objectives) > 1:
        pairs = list(combinations(objectives, 2))
        title = f"Study {study['study']}: all trials, with the Pareto front as triangles."
        parts.append(_scatter(f"{name}-front", title, frame, best, pairs))
    settings = [column.key for column in trials.columns if column.key in study["settings"]]
    pairs = [(key, "mean") for key in ("trial", *settings)]
    title = f"Study {study['study']}: mean score of all trials, by trial number and by each setting."
    parts.append(_scatter(f"{name}-settings", title, frame, best, pairs))
    if study["importances"]:
        parts.append(
            Table(
                f"{name}-importances",
                f"Study {study['study']}: importance of the settings",
                "Optuna's estimate of each setting's share of the variance of the mean score.",
                [Column("setting", "setting"), Column("importance", "importance", "share")],
                [{"setting": key, "importance": value} for key, value in study["importances"].items()],
            )
        )
    return parts


def _confirmation(study: dict, again: list[dict], name: str) -> Table:
    """The confirmed settings: the score that made each a candidate, and those of all seeds."""
    tried = {trial["trial"]: trial["values"][0] for trial in study["complete"]}
    tasks = list(again[0]["scores"])
    table = Table(
        name,
        f"Study {study['study']}: the best trials with further seeds",
        f"{study['split']} prompts. The setting with the best mean over all seeds is chosen; the score of its trial "
        "alone is biased upwards, and so, by less, is the best of these means.",
        [
            Column("trial", "trial", "count"),
            Column("tried", "score as a trial", "score"),
            Column("mean", "mean score, all seeds", "score"),
            *(Column(task, task, "score") for task in tasks),
            Column("seeds", "seeds", "count"),
        ],
    )
    for row in again:
        means = {task: sum(values) / len(values) for task, values in row["scores"].items()}
        seeds = len(row["scores"][tasks[0]])
        found: Row = {"trial": row["trial"], "tried": tried.get(row["trial"]), "mean": row["value"], "seeds": seeds}
        table.rows.append(found | means)
    return table


def _trials(study: dict, name: str, chosen: set[int], confirmed: bool) -> Table:
    """Finished trials, highest mean first."""
    objectives = study["objectives"] if len(study["objectives"]) > 1 else []
    counts = ", ".join(f"{count} {state}" for state, count in study["trials"].items() if count)
    bold = "Pareto front" if objectives else "chosen" if confirmed else "best"
    cure = "confirm it with other seeds and on test prompts"
    table = Table(
        name,
        f"Study {study['study']}: trials, {bold} in bold",
        f"{counts}; {study['split']} prompts, {study['budget']:,} training NFE per run. The best of many "
        f"trials is optimistically biased: {'the next table has further seeds' if confirmed else cure}.",
        [
            Column("trial", "trial", "count"),
            Column("mean", "mean score", "score"),
            *(Column(key, key, "score") for key in objectives),
            *(Column(key, key.rpartition(".")[2], _kind(study, key)) for key in study["settings"]),
        ],
    )

    def rank(trial: dict) -> tuple[float, int]:
        return -sum(trial["values"]), trial["trial"]

    for trial in sorted(study["complete"], key=rank):
        mean = sum(trial["values"]) / len(trial["values"])
        row: Row = {"trial": trial["trial"], "mean": mean}
        row |= dict(zip(objectives, trial["values"]))
        # The columns are the study's settings; a trial's record may lack one of them.
        row |= {key: trial["settings"].get(key) for key in study["settings"]}
        table.rows.append(row)
        if trial["trial"] in chosen:
            index = len(table.rows) - 1
            table.strong |= {(index, key) for key in ("trial", "mean", *objectives)}
    return table


def _kind(study: dict, key: str) -> Kind:
    return "text" if study["settings"][key] == "choices" else "ratio"


def _scatter(
    name: str,
    title: str,
    frame: pd.DataFrame,
    best: pd.Series,
    pairs: list[tuple[str, str]],
) -> Figure:
    """One panel per pair of columns; chosen trials have a different marker."""

    def draw(width: float):
        import matplotlib.pyplot as plt
        import seaborn

        palette = seaborn.color_palette("colorblind", 10)
        most, height = (1, 1.5) if is_column(width) else (3, 2.1)
        columns = min(len(pairs), most)
        rows = math.ceil(len(pairs) / columns)
        size = (width, height * rows)
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for axes in grid.flat[len(pairs) :]:
            axes.remove()
        for axes, (a, b) in zip(grid.flat, pairs):
            # Chosen trials last, so that no other marker hides them.
            others, front = (~best, "o", palette[0]), (best, "^", palette[3])
            for kept, marker, colour in (others, front):
                points = frame[kept & frame[a].notna()]
                # Choices and booleans become categories of the axis.
                values = points[a] if _numeric(frame[a]) else points[a].map(str)
                (marks,) = axes.plot(values, points[b], marker, color=colour)
                said = [f"trial {row['trial']}: {a} {row[a]}, {b} {row[b]!r}" for _, row in points.iterrows()]
                says(marks, said)
            if _wide(frame[a]):
                logarithmic(axes, "x")
            elif _numeric(frame[a]):
                integer = pd.api.types.is_integer_dtype(frame[a])
                axes.locator_params(axis="x", nbins=4, integer=integer)
            axes.set(xlabel=_label(a), ylabel=_label(b))
        return figure

    return Figure(name, title, f"{title} {len(frame)} trials; the table has the numbers.", draw)


def _numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _wide(values: pd.Series) -> bool:
    """Whether numbers above 0 span more than a factor of 10."""
    # Numbers of trials are numbers without a scale.
    if not _numeric(values) or values.name == "trial":
        return False
    return 0 < 10 * values.min() < values.max()


def _label(key: str) -> str:
    named = {"trial": "trial number", "mean": "mean score"}
    return named.get(key, key.rpartition(".")[2])
