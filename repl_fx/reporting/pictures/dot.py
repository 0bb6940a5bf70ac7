"""A folded model as DOT, which Graphviz lays out: cards are clusters."""

from __future__ import annotations

from repl_fx.reporting.pictures.folded import Folded
from repl_fx.reporting.templates import template_of


def dot_of(folded: Folded) -> str:
    """The text of a DOT file."""
    template = template_of(__package__, "picture.dot.jinja", markup=False, quoted=_quoted)
    # A dashed line leads from an item to the first one of the cluster that shows what is inside it.
    first = {card.key: next((i for i, item in enumerate(card.items) if item), 0) for card in folded.cards}
    return template.render(lines=folded.lines, cards=folded.cards, first=first) + "\n"


def _quoted(text: str) -> str:
    """A string of DOT; a backslash would begin an escape, as would a NUL end the text."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\ufffd")
    return '"' + plain.replace("\r", " ").replace("\n", "\\n") + '"'
