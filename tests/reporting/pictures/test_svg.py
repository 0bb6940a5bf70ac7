"""SVG: it is well formed, escapes, and needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from repl_fx.reporting.pictures.folded import DrawnItem, Folded, fold_document, stack_of
from repl_fx.reporting.pictures.svg import svg_of
from tests.model_graphs import small_document
from tests.reporting.pictures.pictured import MARKUP, ODD

SPACE = "{http://www.w3.org/2000/svg}"


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in root.iter(f"{SPACE}text")]


def drawn(folded: Folded) -> ElementTree.Element:
    made = svg_of(folded)
    # Nothing of it is fetched, or runs.
    assert "http" not in made.replace("http://www.w3.org/2000/svg", "") and "@import" not in made
    root = ElementTree.fromstring(made)
    assert {element.tag.removeprefix(SPACE) for element in root.iter()} <= {
        *("svg", "style", "defs", "marker", "path", "rect", "text", "tspan", "g", "title")
    }
    return root


def test_a_model_with_its_blocks() -> None:
    pytest.importorskip("igraph")
    root = drawn(fold_document(small_document()))
    shown = texts(root)
    assert shown[0] == "TokenNet (net.py)" and {"the whole model", "inside blocks.0", "kept"} <= set(shown)
    looks = [rect.get("class") for rect in root.iter(f"{SPACE}rect")]
    # Three blocks and the legend; the stack has two sheets below it.
    assert looks.count("box replaced") == 2 and looks.count("box kept") == 3 and looks.count("box repeat") == 3
    assert any("→ bottleneck" in text for text in shown)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.iter(f"{SPACE}rect"):
        x, y, wide, high = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + wide <= width and y + high <= height


def test_names_are_text_alone() -> None:
    root = drawn(ODD)
    written = MARKUP.replace("\0", "\ufffd")
    assert texts(root)[0] == written
    assert [t.text for t in root.iter(f"{SPACE}title")].count(written) == 5
    assert root.attrib["aria-label"].startswith("</text><script>")


def test_blocks_are_marked_in_words_too() -> None:
    shown = texts(drawn(ODD))
    assert {"→ slim3 k", "refused112 k", "replaced by a surrogate", "refused, stays"} <= set(shown)


def test_long_names_are_cut_and_many_blocks_stand_in_columns() -> None:
    blocks = tuple(DrawnItem(f"{'encoder.' * 9}{i}", "1 M", "kept") for i in range(40))
    panel, _, block = ODD.cards
    root = drawn(replace(ODD, cards=(panel, stack_of("s0", "many", blocks, {39: "b"}), block)))
    names = [text for text in texts(root) if text.startswith("encoder.")]
    assert len(names) == 40 and all(len(name) < 36 and name.endswith("…") for name in names)
    places = {rect.get("x") for rect in root.iter(f"{SPACE}rect") if rect.get("class") == "box kept"}
    assert len(places) == 3
    # The wedge from the stack, and that from the last block.
    assert len([path for path in root.iter(f"{SPACE}path") if path.get("class") == "opens"]) == 2


def test_both_schemes_have_all_colours() -> None:
    style = next(drawn(ODD).iter(f"{SPACE}style")).text or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    named = set(re.findall(r"(--[\w-]+):", light))
    assert named == set(re.findall(r"(--[\w-]+):", dark)) == set(re.findall(r"var\((--[\w-]+)\)", style))
