"""Charts are SVG that takes its colours from the page."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from repl_fx.reporting.figures import Bar, Bars, Curves, Errors
from repl_fx.reporting.model_graph.document import Curve, Layer
from repl_fx.reporting.page.charts import AFTER, BEFORE, draw

NAMES = ["blocks.0", "</text><script>f(1)</script>", "'\"\\ + alert(1) + '", "blocks.0"]


def _texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {"svg", "g", "path", "line", "text"}
    return [text for element in root.iter("{http://www.w3.org/2000/svg}text") if (text := element.text)]


def test_bars_have_names_texts_and_colours_of_the_page() -> None:
    bars = [Bar(name, 10.0, 5.0 - i, f"text {i}", i == 1) for i, name in enumerate(NAMES)]
    svg = draw(Bars("Bars", bars, "parameters"))
    texts = _texts(svg)
    assert [text for text in texts if text in NAMES] == NAMES
    assert [text for text in texts if text.startswith("text ")] == [f"text {i}" for i in range(4)]
    assert "parameters" in texts
    # Four wide bars, of which three have a thin one in the same colour, and one in that of what is replaced.
    assert svg.count(f'fill="{BEFORE}"') == 7 and svg.count(f'fill="{AFTER}"') == 1
    assert "currentColor" in svg and not re.search(r"(fill|stroke)=\"(black|#|rgb)", svg)


def test_bars_without_a_second_one_are_single() -> None:
    svg = draw(Bars("Bars", [Bar("a", 1.0), Bar("b", 0.0)], "ms"))
    assert svg.count(f'fill="{BEFORE}"') == 2 and AFTER not in svg
    marked = draw(Bars("Bars", [Bar("a", 1.0, marked=True), Bar("b", 0.5)], "influence"))
    assert marked.count(f'fill="{BEFORE}"') == 1 and marked.count(f'fill="{AFTER}"') == 1


def test_curves_have_a_legend_only_where_there_are_several() -> None:
    points = ((0, 1.0), (1, math.nan), (2, 0.5))
    one, two = (
        draw(Curves("loss", [Curve("a run", points)])),
        draw(Curves("loss", [Curve(n, points) for n in NAMES[1:3]])),
    )
    assert "loss" in _texts(one) and "a run" not in _texts(one)
    assert set(NAMES[1:3]) <= set(_texts(two))
    assert BEFORE in two and AFTER in two


def test_errors_of_zero_and_infinity_stay_on_the_scale() -> None:
    errors = [Layer("", "", 0.0, 0.0, True), Layer("", "", 1e-7, 1.0, True), Layer("", "", math.inf, 1.0, False)]
    svg = draw(Errors("Errors", errors))
    assert "NaN" not in svg and "Infinity" not in svg
    assert {"passes", "differs", Errors.axis} <= set(_texts(svg))
    assert "differs" not in _texts(draw(Errors("Errors", errors[:2])))
    # Nothing but zeros has a scale, too.
    assert "NaN" not in draw(Errors("Errors", [errors[0]] * 2))


def test_long_names_keep_their_end() -> None:
    bars = [Bar(f"{'encoder.' * 9}{i}", 1.0) for i in range(2)]
    shown = [text for text in _texts(draw(Bars("Bars", bars, "ms"))) if "encoder" in text]
    assert all(name.startswith("…") and name.endswith(f".{i}") for i, name in enumerate(shown)) and len(shown) == 2
