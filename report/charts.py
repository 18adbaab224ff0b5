"""Interactive charts of the page, drawn by Vega-Lite: hovering names a point, a click on the legend singles out a line.

The page carries Vega itself, so that it works without a network, and runs it when a reader first asks for a chart.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from report.style import Look

if TYPE_CHECKING:
    from altair import FacetChart, LayerChart

WIDTH = 760
"""Width in pixels of a chart with one panel."""


class Library:
    """Vega, Vega-Lite and vega-embed as one script; made as figures are, in parallel with them."""

    @cached_property
    def files(self) -> dict[str, bytes]:
        """One file, safe between HTML's script tags."""
        from vl_convert import javascript_bundle

        return {"vega.js": javascript_bundle("window.vegaEmbed = vegaEmbed").replace("</script", "<\\/script").encode()}


def forest_chart(
    rows: list[dict],
    look: dict[str, Look],
    axis: str,
    ends: tuple[float, float],
    sides: dict[str, tuple[float, float]],
) -> "FacetChart":
    """Differences with intervals, one panel per group; rows have group, line, value, low and high.

    `axis` and `ends` are the axis's title and ends; `sides` has the shaded part of the axis by group.
    """
    import altair as alt

    hints = ["line:N", "group:N", *_numbers("value", "low", "high")]
    # The order of the rows; without one of its own every panel keeps the lines of its group only.
    lines = alt.Y("line:N", sort=alt.SortField("order"), title=None, axis=alt.Axis(labelLimit=320))
    start = alt.Chart().encode(y=lines, color=_colour(look, legend=None), tooltip=hints)
    gap = alt.X("low:Q", title=axis, scale=alt.Scale(domain=list(ends), nice=False))
    bars = start.mark_rule(strokeWidth=2).encode(x=gap, x2="high:Q")
    points = start.mark_point(filled=True, size=60).encode(x="value:Q")
    zero = alt.Chart().mark_rule(color="gray", aria=False).encode(x=alt.datum(0))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    data = pd.DataFrame(
        [
            row | {"order": place} | dict(zip(("from", "to"), sides.get(row["group"], (float("nan"), float("nan")))))
            for place, row in enumerate(rows)
        ]
    )
    shade = alt.Chart().mark_rect(color="#ededed", aria=False).encode(x="from:Q", x2="to:Q")
    header = alt.Header(labelAngle=0, labelOrient="top", labelAnchor="start", labelFontWeight="bold")
    row = alt.Row("group:N", sort=groups, title=None, header=header)
    panel = alt.layer(*([shade] if sides else []), zero, bars, points, data=data).properties(width=WIDTH - 330)
    return panel.facet(row=row).resolve_scale(y="independent")


def cost_chart(
    rows: list[dict], front: list[dict], levels: dict[str, dict[str, float]], look: dict[str, Look]
) -> "LayerChart | FacetChart":
    """Mean scores by cost; rows have line, point, nfe, counted, mean, low and high, the front nfe and mean."""
    import altair as alt

    chosen, opacity = _singled_out()
    start = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X(
            "nfe:Q",
            scale=alt.Scale(type="log", nice=False, padding=12),
            title="NFE per run",
            axis=alt.Axis(format=",.0f"),
        ),
        color=_colour(look),
        opacity=opacity,
        tooltip=["line", "counted", alt.Tooltip("nfe:Q", format=",.0f"), *_numbers("mean", "low", "high")],
    )
    score = alt.Y("mean:Q", title="mean score", scale=alt.Scale(zero=False, padding=12))
    joined = start.mark_line(strokeWidth=1).encode(y=score, detail="point:N")
    points = start.mark_point(size=70).encode(y=score, shape=alt.Shape("counted:N", title="NFE of"))
    edge = alt.Chart(pd.DataFrame(front)).mark_line(
        interpolate="step-after", color="dimgray", strokeWidth=1, aria=False
    )
    layers = [edge.encode(x="nfe:Q", y=score), joined, points] if len(front) > 1 else [joined, points]
    for name, dash in (("base", [2, 3]), ("teacher", [6, 3])):
        if (level := levels.get("mean", {}).get(name)) is not None:
            rule = alt.Chart(pd.DataFrame([{"mean": level}])).mark_rule(strokeDash=dash, color="gray", aria=False)
            layers.append(rule.encode(y=score))
    title = "Steps: the front, teachers counted. Dotted: base. Dashed: each task's own teacher."
    made = alt.layer(*layers, width=WIDTH - 250, height=330, title=title)
    return made.add_params(chosen).interactive()


def curves_chart(frame: pd.DataFrame, tasks: list[str], look: dict[str, Look]) -> "FacetChart":
    """Scores during training by task; columns line, task, nfe, seconds, score and its interval."""
    import altair as alt

    chosen, opacity = _singled_out()
    by = alt.param(name="by", value="nfe", bind=alt.binding_radio(options=["nfe", "seconds"], name="against "))
    data = frame[frame["line"].isin(look)]
    start = (
        alt.Chart()
        .transform_calculate(at="datum[by]")
        .encode(
            x=alt.X("at:Q", title="training NFE, or seconds of training and scoring"),
            color=_colour(look),
            opacity=opacity,
            tooltip=[
                "line:N",
                alt.Tooltip("nfe:Q", format=",.0f"),
                alt.Tooltip("seconds:Q", format=",.0f"),
                *_numbers("score", "score_low", "score_high"),
            ],
        )
    )
    score = alt.Y("score:Q", scale=alt.Scale(zero=False))
    curves = start.mark_line().encode(y=score)
    points = start.mark_point(filled=True, size=35).encode(y=score)
    panel = alt.layer(curves, points, data=data).properties(width=WIDTH / min(3, len(tasks)) - 80, height=230)
    return (
        panel.facet(facet=alt.Facet("task:N", sort=tasks, title=None), columns=3)
        .resolve_scale(y="independent")
        .add_params(chosen, by)
    )


def _singled_out() -> tuple:
    """A selection of lines by clicks on the legend, and the opacity by which it fades the others."""
    import altair as alt

    chosen = alt.selection_point(fields=["line"], bind="legend")
    return chosen, alt.when(chosen).then(alt.value(0.95)).otherwise(alt.value(0.08))


def _numbers(*keys: str) -> list:
    import altair as alt

    return [alt.Tooltip(key, type="quantitative", format=".4f") for key in keys]


def _colour(look: dict[str, Look], **options):
    """The colours of the figures, so that a line looks alike in both."""
    import altair as alt
    from matplotlib.colors import to_hex

    names = sorted(look, key=lambda name: not look[name].matters)
    scale = alt.Scale(domain=names, range=[to_hex(look[name].colour) for name in names])
    return alt.Color(
        "line:N", scale=scale, title=None, **({"legend": alt.Legend(labelLimit=320, symbolLimit=0)} | options)
    )
