"""A folded model as SVG: one file without anything outside of it, legible on a light and on a dark page."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from repl_fx.report.model_graph.document import Box
from repl_fx.report.pictures.folded import Folded, Item, Panel, Stack

_MARGIN, _GAP, _HEAD, _TITLE = 24, 56, 92, 30
_ROW, _ROW_WIDTH, _ROWS, _BETWEEN = 26, 250, 16, 10
# What a card shows, beside the numbers of stacks.
_NEXT, _BLOCK = -1, -2
# Pixels of a character of 12 pixels, of which a title is a little wider; of those below.
_TITLE_CHARACTER, _CHARACTER = 7.0, 5.9
# What XML has no way to write.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_STYLE = """
svg { --page: #ffffff; --ink: #1f2933; --faint: #5f6b7a; --line: #8a97a8; --card: #f5f7fa; --edge: #c9d1dc;
  --box: #ffffff; --kept: #dfeafa; --kept-line: #3f6fb0; --gone: #ffe3c2; --gone-line: #c25e00; --gone-ink: #8a4300;
  --refused: #eceff3; --module: #e9edf3; --value: #e6f4ea; --value-line: #4c8c5f; --synthesis: #f3e8fb; }
@media (prefers-color-scheme: dark) { svg { --page: #14181f; --ink: #e6ebf2; --faint: #a3aebd; --line: #77849a;
  --card: #1c222c; --edge: #38424f; --box: #232b37; --kept: #213a5c; --kept-line: #7ba7e0; --gone: #553211;
  --gone-line: #f2a65a; --gone-ink: #ffc98f; --refused: #2d333d; --module: #2a323f; --value: #1f3a2a;
  --value-line: #7fc095; --synthesis: #3a2a49; } }
text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-size: 12px; fill: var(--ink); }
.heading { font-size: 18px; font-weight: 600; }
.title { font-size: 13px; font-weight: 600; }
.name { font-weight: 600; }
.detail { font-size: 10.5px; fill: var(--faint); }
.mark { font-weight: 700; fill: var(--gone-ink); }
.page { fill: var(--page); }
.card { fill: var(--card); stroke: var(--edge); }
.box { fill: var(--box); stroke: var(--line); }
.module { fill: var(--module); }
.repeat, .kept { fill: var(--kept); stroke: var(--kept-line); }
.replaced { fill: var(--gone); stroke: var(--gone-line); stroke-width: 2; }
.refused { fill: var(--refused); stroke-dasharray: 5 3; }
.input, .output { fill: var(--value); stroke: var(--value-line); }
.synthesis { fill: var(--synthesis); }
.edge { fill: none; stroke: var(--line); stroke-width: 1.3; stroke-linejoin: round; }
.opens { fill: var(--kept-line); fill-opacity: 0.1; stroke: var(--kept-line); stroke-dasharray: 4 4; }
.arrow { fill: var(--line); }
"""


@dataclass(frozen=True)
class _Placed:
    """A box on the page, and the way to draw what stands in it."""

    item: Item
    box: Box
    stacked: bool = False


def svg_of(folded: Folded) -> str:
    """The text of an SVG file."""
    columns = _columns(folded)
    width = max(_MARGIN + sum(column.width + _GAP for column in columns) - _GAP + _MARGIN, 560)
    height = _HEAD + max(column.height for column in columns) + _MARGIN
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "aria-label": _writable(". ".join(folded.lines)),
        },
    )
    SubElement(root, "style").text = _STYLE
    marker = {"id": "arrow", "viewBox": "0 0 8 8", "refX": "7", "refY": "4", "markerWidth": "6", "markerHeight": "6"}
    arrow = SubElement(SubElement(root, "defs"), "marker", {**marker, "orient": "auto"})
    SubElement(arrow, "path", {"class": "arrow", "d": "M0 0L8 4L0 8z"})
    _rect(root, Box(0, 0, width, height), "page", 10)
    for number, line in enumerate(folded.lines):
        _text(root, _MARGIN, 34 + 24 * number, line, "heading" if number == 0 else "")
    _legend(root, folded)
    left, before = _MARGIN, None
    for column in columns:
        column.draw(root, left, _beside(before, column, height - _MARGIN))
        left, before = left + column.width + _GAP, column
    _opened(root, columns)
    # One element a line; blanks inside of a text would show.
    return re.sub(r"(?=<(?:g|path|rect|text|style|defs)[ >])", "\n", tostring(root, encoding="unicode")) + "\n"


class _Column:
    """A card of the picture, or several below one another.

    Attributes:
        keys: what its cards show: number of a stack, `_NEXT` for a panel on the way down, `_BLOCK`.
        opens: the boxes, on the page, whose insides later columns show, by key.
        cards: its cards on the page, by key.
    """

    def __init__(self, width: int, height: int, keys: Collection[int]) -> None:
        self.width, self.height, self.keys = width, height, keys
        self.opens: dict[int, Box] = {}
        self.cards: dict[int, Box] = {}

    def draw(self, root: Element, left: int, top: int) -> None:
        raise NotImplementedError


class _PanelColumn(_Column):
    def __init__(self, panel: Panel, key: int) -> None:
        wide = max(panel.layout.width, round(len(panel.title) * _TITLE_CHARACTER) + 2 * _BETWEEN)
        super().__init__(wide, _TITLE + panel.layout.height, [key])
        self.panel, self.key = panel, key

    def draw(self, root: Element, left: int, top: int) -> None:
        card = Box(left, top, self.width, self.height)
        self.cards[self.key] = card
        _rect(root, card, "card", 8)
        _text(root, left + _BETWEEN, top + 20, self.panel.title, "title")
        shift = left + (self.width - self.panel.layout.width) // 2, top + _TITLE
        for route in self.panel.layout.routes:
            points = list(zip(route.points[::2], route.points[1::2], strict=True))
            way = "L".join(f"{x + shift[0]} {y + shift[1]}" for x, y in points)
            SubElement(root, "path", {"class": "edge", "d": f"M{way}", "marker-end": "url(#arrow)"})
        stacks = dict(self.panel.stacks)
        for place, (item, box) in enumerate(zip(self.panel.items, self.panel.layout.boxes, strict=True)):
            if item is None:
                continue
            at = Box(box.x + shift[0], box.y + shift[1], box.width, box.height)
            _draw(root, _Placed(item, at, stacked=item.look == "repeat"))
            if place in stacks:
                self.opens[stacks[place]] = at
            if place == self.panel.opened:
                self.opens[_NEXT] = at


class _StackColumn(_Column):
    def __init__(self, stacks: Sequence[Stack]) -> None:
        self.sizes = [_stack_size(stack) for stack in stacks]
        height = sum(height for _, height in self.sizes) + _BETWEEN * (len(stacks) - 1)
        super().__init__(max(width for width, _ in self.sizes), height, range(len(stacks)))
        self.stacks = stacks

    def draw(self, root: Element, left: int, top: int) -> None:
        for number, (stack, (_, height)) in enumerate(zip(self.stacks, self.sizes, strict=True)):
            card = Box(left, top, self.width, height)
            self.cards[number] = card
            _rect(root, card, "card", 8)
            _text(root, left + _BETWEEN, top + 20, stack.title, "title")
            for place, item in enumerate(stack.blocks):
                column, row = divmod(place, _ROWS)
                x = left + _BETWEEN + column * (_ROW_WIDTH + _BETWEEN)
                box = Box(x, top + _TITLE + row * (_ROW + 6), _ROW_WIDTH, _ROW)
                _draw(root, _Placed(item, box))
                if place == stack.opened:
                    self.opens[_BLOCK] = box
            top += height + _BETWEEN


def _stack_size(stack: Stack) -> tuple[int, int]:
    columns, rows = -(-len(stack.blocks) // _ROWS), min(len(stack.blocks), _ROWS)
    wide = max(columns * (_ROW_WIDTH + _BETWEEN) + _BETWEEN, round(len(stack.title) * _TITLE_CHARACTER) + 2 * _BETWEEN)
    return wide, _TITLE + rows * (_ROW + 6) + _BETWEEN - 6


def _columns(folded: Folded) -> list[_Column]:
    columns: list[_Column] = [_PanelColumn(panel, _NEXT) for panel in folded.panels]
    if folded.stacks:
        columns.append(_StackColumn(folded.stacks))
    if folded.block is not None:
        columns.append(_PanelColumn(folded.block, _BLOCK))
    return columns


def _beside(before: _Column | None, column: _Column, bottom: int) -> int:
    """The top of a column: beside the boxes that it opens, as far as there is room."""
    opened = [box for key, box in before.opens.items() if key in column.keys] if before is not None else []
    if not opened:
        return _HEAD
    middle = sum(box.y + box.height // 2 for box in opened) // len(opened)
    return max(_HEAD, min(middle - column.height // 2, bottom - column.height))


def _opened(root: Element, columns: Sequence[_Column]) -> None:
    """Lead from each box to the card that shows what is inside it."""
    for number, column in enumerate(columns):
        for key, box in column.opens.items():
            card = next((later.cards[key] for later in columns[number + 1 :] if key in later.cards), None)
            if card is not None:
                right = box.x + box.width
                way = f"M{right} {box.y}L{card.x} {card.y}V{card.y + card.height}L{right} {box.y + box.height}z"
                SubElement(root, "path", {"class": "opens", "d": way})


def _legend(root: Element, folded: Folded) -> None:
    looks = {item.look for stack in folded.stacks for item in stack.blocks}
    if looks == {"kept"}:
        return
    left = _MARGIN
    for look, text in (("kept", "kept"), ("replaced", "replaced by a surrogate"), ("refused", "refused, stays")):
        if look in looks:
            _rect(root, Box(left, 68, 14, 14), f"box {look}", 3)
            _text(root, left + 20, 79, text, "detail")
            left += 40 + round(len(text) * _CHARACTER)


def _draw(root: Element, placed: _Placed) -> None:
    item, box = placed.item, placed.box
    group = SubElement(root, "g")
    SubElement(group, "title").text = _writable(item.tip or item.title)
    if placed.stacked:
        for shift in (8, 4):
            _rect(group, Box(box.x + shift, box.y + shift, box.width, box.height), f"box {item.look}", 5)
    _rect(group, box, f"box {item.look}", 5)
    middle = box.y + box.height / 2
    if box.height >= 36 and item.detail:
        _text(group, box.x + 9, middle - 3, _cut(item.title, box.width - 16, _TITLE_CHARACTER), "name")
        _text(group, box.x + 9, middle + 11, _cut(item.detail, box.width - 16, _CHARACTER), "detail")
    else:
        # A port of one line has no room for more than its name.
        words = ((item.mark, "mark"), (item.detail, "detail")) if box.width >= _ROW_WIDTH else ()
        ends = [(word, look) for word, look in words if word]
        taken = min(sum(len(word) + 2 for word, _ in ends) * _TITLE_CHARACTER, 0.6 * box.width)
        _text(group, box.x + 9, middle + 4, _cut(item.title, box.width - 18 - taken, _TITLE_CHARACTER), "name")
        if ends:
            _ends(group, box.x + box.width - 9, middle + 4, ends)


def _ends(parent: Element, x: float, y: float, ends: Sequence[tuple[str, str]]) -> None:
    """Write words that end at a place, each in its style."""
    element = SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": "end"})
    for number, (word, look) in enumerate(ends):
        # A gap by number: blanks between elements are dropped.
        gap = {"dx": "12"} if number else {}
        SubElement(element, "tspan", {"class": look, **gap}).text = _writable(word)


def _text(parent: Element, x: float, y: float, text: str, style: str) -> None:
    element = SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}"} | ({"class": style} if style else {}))
    element.text = _writable(text)


def _rect(parent: Element, box: Box, style: str, round_by: int) -> None:
    place = {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "rx": round_by}
    SubElement(parent, "rect", {"class": style, **{name: str(value) for name, value in place.items()}})


def _cut(text: str, room: float, character: float) -> str:
    most = max(int(room / character), 2)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _writable(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)
