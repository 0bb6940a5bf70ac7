"""Charts of a report: Altair's, as SVG that stands in the page and takes its colours from there.

An SVG needs neither a script nor the network, is readable in light and in dark, and prints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

# The custom properties of report.css; a chart is drawn once and shown in both themes.
BEFORE, AFTER, GRID = "var(--before)", "var(--after)", "var(--grid)"
_COLOURS = (BEFORE, AFTER, "var(--third)", "var(--fourth)", "var(--muted)")
_INK = "currentColor"
# vl-convert measures texts in a font of its own; the page has those that look alike.
_FONT = "Arial, sans-serif"
_WIDTH = 400
_BAR = 18
# A longer name is cut; the whole one is in the table.
_LONGEST_NAME = 190


@dataclass(frozen=True)
class Bar:
    """A bar, and over it, where there are two, a thinner one for what is left.

    Attributes:
        marked: whether its block was replaced.
    """

    name: str
    before: float
    after: float | None = None
    text: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Curve:
    """A line through points of a step and a value."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class LayerError:
    """The error of an inner value, by its place in the order of execution."""

    place: int
    error: float
    passed: bool


def bars_chart(bars: Sequence[Bar], unit: str) -> str:
    """Horizontal bars, one below another; of pairs, the thin one is after.

    Args:
        bars: at least one; names may repeat.
        unit: title of the axis.
    """
    rows = [
        {"place": i, "name": bar.name, "before": bar.before, "after": bar.after, "text": bar.text, "marked": bar.marked}
        for i, bar in enumerate(bars)
    ]
    # Names of blocks of different parts may be the same, so places are what is sorted and named.
    names = "{" + ",".join(f"'{i}': {_quoted(bar.name)}" for i, bar in enumerate(bars)) + "}[datum.value]"
    place = alt.Y("place:O", title=None, sort=None).axis(
        labelExpr=names, labelLimit=_LONGEST_NAME, domain=False, ticks=False, labelPadding=8
    )
    most = max((max(bar.before, bar.after or 0.0) for bar in bars), default=0.0) or 1.0
    # Room for the text behind the longest bar.
    across = alt.Scale(domain=[0, most * 1.18], nice=False)
    axis = alt.Axis(format="~s", tickCount=5, title=unit)
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=place)
    paired = any(bar.after is not None for bar in bars)
    wide = base.mark_bar(cornerRadiusEnd=2, size=_BAR - 5, opacity=0.35 if paired else 1.0, color=BEFORE).encode(
        x=alt.X("before:Q", scale=across, axis=axis, stack=None)
    )
    layers: list[Any] = [wide]
    if paired:
        colour = alt.condition("datum.marked", alt.value(AFTER), alt.value(BEFORE))
        thin = base.mark_bar(cornerRadiusEnd=2, size=_BAR - 12).encode(
            x=alt.X("after:Q", scale=across, stack=None), color=colour
        )
        layers.append(thin)
    text = base.transform_calculate(longer="max(datum.before, datum.after)").mark_text(
        align="left", dx=5, color=_INK, fontSize=10.5
    )
    layers.append(text.encode(x=alt.X("longer:Q", scale=across), text="text:N"))
    return _svg(alt.layer(*layers).properties(width=_WIDTH, height=_BAR * len(bars)))


def curves_chart(curves: Sequence[Curve], what: str) -> str:
    """Lines over the steps of a run, each with its own colour and stroke."""
    rows = [
        {"curve": str(i), "step": step, "value": value}
        for i, curve in enumerate(curves)
        for step, value in curve.points
        if math.isfinite(value)
    ]
    places = [str(i) for i in range(len(curves))]
    names = "{" + ",".join(f"'{i}': {_quoted(curve.name)}" for i, curve in enumerate(curves)) + "}[datum.value]"
    legend = (
        alt.Legend(labelExpr=names, title=None, orient="top", labelLimit=_WIDTH, columns=3) if len(curves) > 1 else None
    )
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(curves))]
    strokes = [[[1, 0], [6, 3], [2, 2]][i // len(_COLOURS) % 3] for i in range(len(curves))]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=14) if len(rows) < 60 else False)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(format="~s", tickCount=6)),
            y=alt.Y("value:Q", title=what, scale=alt.Scale(zero=False), axis=alt.Axis(format="~g", tickCount=5)),
            color=alt.Color("curve:N", scale=alt.Scale(domain=places, range=colours), legend=legend),
            strokeDash=alt.StrokeDash("curve:N", scale=alt.Scale(domain=places, range=strokes), legend=legend),
        )
    )
    return _svg(chart.properties(width=_WIDTH, height=200))


def errors_chart(errors: Sequence[LayerError], what: str) -> str:
    """Errors in the order of execution, on a logarithmic scale; those beyond the tolerance are crosses.

    An error of 0 has no place on such a scale, and is drawn at its lower end.
    """
    known = [one.error for one in errors if one.error > 0 and math.isfinite(one.error)]
    least = min(known, default=1e-9) / 3
    most = max(known, default=1.0)
    rows = [
        {"place": one.place, "error": _within(one.error, least, most), "verdict": "passes" if one.passed else "differs"}
        for one in errors
    ]
    y = alt.Y(
        "error:Q",
        title=what,
        scale=alt.Scale(type="log", domain=[least, most * 2], nice=False),
        axis=alt.Axis(format=".0e", tickCount=5),
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("place:Q", title="layer, in the order of execution", axis=alt.Axis(tickMinStep=1, tickCount=8)), y=y
    )
    line = base.mark_line(strokeWidth=1.5, color=BEFORE)
    scale: dict[str, Any] = {"domain": ["passes", "differs"]}
    differs = not all(one.passed for one in errors)
    legend = alt.Legend(title=None, orient="top") if differs else None
    dots = base.mark_point(filled=True, size=34, opacity=1).encode(
        color=alt.Color("verdict:N", scale=alt.Scale(range=[BEFORE, AFTER], **scale), legend=legend),
        shape=alt.Shape("verdict:N", scale=alt.Scale(range=["circle", "cross"], **scale), legend=legend),
    )
    return _svg(alt.layer(line, dots).properties(width=2 * _WIDTH, height=220))


def _within(error: float, least: float, most: float) -> float:
    """An error as it has a place on the scale: 0 at its lower end, infinity at its upper."""
    return min(max(error, least), most * 2) if not math.isnan(error) else most * 2


def _quoted(name: str) -> str:
    """A name as a string of Vega's expression language, in which no character of it can end the string."""
    return "'" + "".join(f"\\u{ord(char):04x}" if ord(char) < 0x10000 else "?" for char in name) + "'"


def _svg(chart: Any) -> str:
    """The text of an SVG element, without what a page reads aloud: the figure around it has a summary."""
    styled = (
        chart.configure(background="transparent", font=_FONT, aria=False, padding=4)
        .configure_view(stroke=None)
        .configure_mark(aria=False)
        .configure_axis(
            labelColor=_INK,
            titleColor=_INK,
            gridColor=GRID,
            domainColor=GRID,
            tickColor=GRID,
            labelFontSize=11,
            titleFontSize=11,
            titleFontWeight="normal",
            titlePadding=8,
        )
        .configure_axisY(titleAnchor="end")
        .configure_legend(labelColor=_INK, titleColor=_INK, labelFontSize=11)
    )
    return vl_convert.vegalite_to_svg(styled.to_dict())
