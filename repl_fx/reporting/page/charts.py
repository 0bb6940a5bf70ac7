"""Charts of a report: Altair's, as SVG that stands in the page and takes its colours from there.

An SVG needs neither a script nor the network, is readable in light and in dark, and prints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from repl_fx.reporting.figures import Bars, Curves, Errors, Figure

# The custom properties of report.css; a chart is drawn once and shown in both themes.
BEFORE, AFTER, GRID = "var(--before)", "var(--after)", "var(--grid)"
_COLOURS = (BEFORE, AFTER, "var(--third)", "var(--fourth)", "var(--muted)")
_STROKES = ([1, 0], [6, 3], [2, 2])
_INK = "currentColor"
_WIDTH = 400
_BAR = 18
# A longer name is cut; the whole one is in the table. The end of a name says which block it is.
_LONGEST_NAME, _MOST_CHARACTERS = 190, 28
_CONFIG = {
    "background": "transparent",
    # vl-convert measures texts in a font of its own; the page has those that look alike.
    "font": "Arial, sans-serif",
    # What a page reads aloud is the summary of the figure around the chart.
    "aria": False,
    "padding": 4,
    "view": {"stroke": None},
    "mark": {"aria": False},
    "axis": {
        "labelColor": _INK,
        "titleColor": _INK,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
    },
    "axisY": {"titleAnchor": "end"},
    "legend": {"labelColor": _INK, "titleColor": _INK, "labelFontSize": 11},
}


def draw(figure: Figure) -> str:
    """The text of an SVG element."""
    if isinstance(figure, Bars):
        chart = _bars(figure)
    else:
        chart = _curves(figure) if isinstance(figure, Curves) else _errors(figure)
    return vl_convert.vegalite_to_svg({**chart.to_dict(), "config": _CONFIG})


def _bars(figure: Bars) -> Any:
    bars = figure.bars
    rows = [
        {"place": i, "before": bar.before, "after": bar.after, "text": figure.text(bar), "marked": bar.marked}
        for i, bar in enumerate(bars)
    ]
    # Names of blocks of different parts may be the same, so places are what is sorted and named.
    place = alt.Y("place:O", title=None, sort=None).axis(
        labelExpr=_named([_short(bar.name) for bar in bars]),
        labelLimit=_LONGEST_NAME,
        domain=False,
        ticks=False,
        labelPadding=8,
    )
    most = max(max(bar.before, bar.after or 0.0) for bar in bars) or 1.0
    # Room for the text behind the longest bar.
    across = alt.Scale(domain=[0, most * 1.18], nice=False)
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=place)
    paired = any(bar.after is not None for bar in bars)
    colour = alt.condition("datum.marked", alt.value(AFTER), alt.value(BEFORE))
    wide = base.mark_bar(cornerRadiusEnd=2, size=_BAR - 5, opacity=0.35 if paired else 1.0).encode(
        x=alt.X("before:Q", scale=across, axis=alt.Axis(format="~s", tickCount=5, title=figure.axis), stack=None),
        color=alt.value(BEFORE) if paired else colour,
    )
    layers: list[Any] = [wide]
    if paired:
        thin = base.mark_bar(cornerRadiusEnd=2, size=_BAR - 12)
        layers.append(thin.encode(x=alt.X("after:Q", scale=across, stack=None), color=colour))
    text = base.transform_calculate(longer="max(datum.before, datum.after)").mark_text(
        align="left", dx=5, color=_INK, fontSize=10.5
    )
    layers.append(text.encode(x=alt.X("longer:Q", scale=across), text="text:N"))
    return alt.layer(*layers).properties(width=_WIDTH, height=_BAR * len(bars))


def _curves(figure: Curves) -> Any:
    """Lines, each with its own colour and stroke."""
    rows = [
        {"curve": str(i), "step": step, "value": value}
        for i, curve in enumerate(figure.curves)
        for step, value in curve.points
        if math.isfinite(value)
    ]
    places = range(len(figure.curves))
    names = _named([curve.label for curve in figure.curves])
    legend = alt.Legend(labelExpr=names, title=None, orient="top", labelLimit=_WIDTH, columns=3)
    shown = legend if len(places) > 1 else None
    domain = [str(i) for i in places]
    colours = alt.Scale(domain=domain, range=[_COLOURS[i % len(_COLOURS)] for i in places])
    strokes = alt.Scale(domain=domain, range=[_STROKES[i // len(_COLOURS) % len(_STROKES)] for i in places])
    y_axis = alt.Axis(format="~g", tickCount=5)
    return (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=14) if len(rows) < 60 else False)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(format="~s", tickCount=6)),
            y=alt.Y("value:Q", title=figure.title, scale=alt.Scale(zero=False), axis=y_axis),
            color=alt.Color("curve:N", scale=colours, legend=shown),
            strokeDash=alt.StrokeDash("curve:N", scale=strokes, legend=shown),
        )
        .properties(width=_WIDTH, height=200)
    )


def _errors(figure: Errors) -> Any:
    """Errors on a logarithmic scale; those beyond the tolerance are crosses.

    An error of 0 has no place on such a scale, and is drawn at its lower end; one that is infinite at its upper.
    """
    errors = [layer.error for layer in figure.layers]
    known = [error for error in errors if error > 0 and math.isfinite(error)]
    least, most = min(known, default=1e-9) / 3, 2 * max(known, default=1.0)
    rows = [
        {
            "place": place,
            "error": most if math.isnan(error) else min(max(error, least), most),
            "verdict": "passes" if layer.passed else "differs",
        }
        for place, (error, layer) in enumerate(zip(errors, figure.layers, strict=True))
    ]
    x_axis, y_axis = alt.Axis(tickMinStep=1, tickCount=8), alt.Axis(format=".0e", tickCount=5)
    scale = alt.Scale(type="log", domain=[least, most], nice=False)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("place:Q", title="layer, in the order of execution", axis=x_axis),
        y=alt.Y("error:Q", title=figure.axis, scale=scale, axis=y_axis),
    )
    verdicts = ["passes", "differs"]
    legend = None if all(layer.passed for layer in figure.layers) else alt.Legend(title=None, orient="top")
    colours = alt.Scale(domain=verdicts, range=[BEFORE, AFTER])
    shapes = alt.Scale(domain=verdicts, range=["circle", "cross"])
    dots = base.mark_point(filled=True, size=34, opacity=1).encode(
        color=alt.Color("verdict:N", scale=colours, legend=legend),
        shape=alt.Shape("verdict:N", scale=shapes, legend=legend),
    )
    line = base.mark_line(strokeWidth=1.5, color=BEFORE)
    return alt.layer(line, dots).properties(width=2 * _WIDTH, height=220)


def _short(name: str) -> str:
    return name if len(name) <= _MOST_CHARACTERS else f"…{name[1 - _MOST_CHARACTERS :]}"


def _named(names: Sequence[str]) -> str:
    """An expression of Vega's for the name at a place, in which no character of a name can end its string."""
    escaped = ("".join(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else "?" for char in name) for name in names)
    return "{" + ",".join(f"'{i}': '{name}'" for i, name in enumerate(escaped)) + "}[datum.value]"
