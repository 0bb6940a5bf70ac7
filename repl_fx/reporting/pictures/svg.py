"""A folded model as SVG: one file without anything outside of it, legible on a light and on a dark page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from repl_fx.reporting.model_graph.document import Box
from repl_fx.reporting.pictures.folded import ROW_WIDTH, Card, DrawnItem, Folded
from repl_fx.reporting.templates import template_of

_MARGIN, _GAP, _HEAD, _TITLE, _BETWEEN = 24, 56, 92, 30, 10
# Pixels of a character of 12 pixels, of which a title is a little wider; of those below.
_TITLE_CHARACTER, _CHARACTER = 7.0, 5.9
# What XML has no way to write.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LOOKS = {"kept": "kept", "replaced": "replaced by a surrogate", "refused": "refused, stays"}


class _Placed:
    """A card on the page.

    Attributes:
        box: its place.
        items: each of its items with its place; None for those that are not drawn.
        drawn: those that are.
        ways: its edges, as the paths of SVG.
    """

    def __init__(self, card: Card, left: int, top: int, width: int) -> None:
        self.of = card
        self.box = Box(left, top, width, _TITLE + card.layout.height)
        x, y = left + (width - card.layout.width) // 2, top + _TITLE
        boxes = (Box(box.x + x, box.y + y, box.width, box.height) for box in card.layout.boxes)
        self.items = list(zip(card.items, boxes, strict=True))
        self.drawn = [(item, box) for item, box in self.items if item is not None]
        ways = (zip(route.points[::2], route.points[1::2], strict=True) for route in card.layout.routes if route.points)
        self.ways = ["M" + "L".join(f"{one + x} {other + y}" for one, other in way) for way in ways]


def svg_of(folded: Folded) -> str:
    """The text of an SVG file."""
    # All stacks stand in one column.
    columns = [list(cards) for _, cards in groupby(folded.cards, lambda card: "s" if card.is_stack else card.key)]
    widths = [max(map(_width, cards)) for cards in columns]
    heights = [sum(_TITLE + card.layout.height + _BETWEEN for card in cards) - _BETWEEN for cards in columns]
    bottom = _HEAD + max(heights)
    placed: list[_Placed] = []
    before: list[_Placed] = []
    left = _MARGIN
    for cards, width, height in zip(columns, widths, heights, strict=True):
        top = _top(before, cards, height, bottom)
        before = []
        for card in cards:
            before.append(_Placed(card, left, top, width))
            top += before[-1].box.height + _BETWEEN
        placed += before
        left += width + _GAP
    page = Box(0, 0, max(left - _GAP + _MARGIN, 560), bottom + _MARGIN)
    template = template_of(__package__, "picture.svg.jinja", cut=_cut, short="{:g}".format)
    text = template.render(
        lines=folded.lines,
        page=page,
        width=page.width,
        height=page.height,
        legend=list(_legend([item for card in placed if card.of.is_stack for item, _ in card.drawn])),
        cards=placed,
        opened=list(_opened(placed)),
        MARGIN=_MARGIN,
        ROW_WIDTH=ROW_WIDTH,
        TITLE_CHARACTER=_TITLE_CHARACTER,
        CHARACTER=_CHARACTER,
    )
    return _UNWRITABLE.sub("\ufffd", text) + "\n"


def _width(card: Card) -> int:
    return max(card.layout.width, round(len(card.title) * _TITLE_CHARACTER) + 2 * _BETWEEN)


def _top(before: Sequence[_Placed], cards: Sequence[Card], height: int, bottom: int) -> int:
    """The top of a column: beside the items of the one before that it opens, as far as there is room."""
    keys = {card.key for card in cards}
    opening = [card.items[place][1] for card in before for place, key in card.of.opens.items() if key in keys]
    if not opening:
        return _HEAD
    middle = sum(box.y + box.height // 2 for box in opening) // len(opening)
    return max(_HEAD, min(middle - height // 2, bottom - height))


def _opened(placed: Sequence[_Placed]) -> Iterator[tuple[Box, Box]]:
    """Each item whose inside another card shows, with that card."""
    boxes = {card.of.key: card.box for card in placed}
    for card in placed:
        yield from ((card.items[place][1], boxes[key]) for place, key in card.of.opens.items() if key in boxes)


def _legend(blocks: Sequence[DrawnItem]) -> Iterator[tuple[str, str, Box]]:
    """A look of blocks, the words for it and the place of its sample; none where nothing became of them."""
    looks = {item.look for item in blocks}
    left = _MARGIN
    for look, text in _LOOKS.items():
        if look in looks and looks != {"kept"}:
            yield look, text, Box(left, 68, 14, 14)
            left += 40 + round(len(text) * _CHARACTER)


def _cut(text: str, room: float, character: float) -> str:
    most = max(int(room / character), 2)
    return text if len(text) <= most else f"{text[: most - 1]}…"
