"""A folded model as DOT, which Graphviz lays out: cards are clusters."""

from __future__ import annotations

from collections import defaultdict
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from repl_fx.report.pictures.folded import Folded

_LOOKS = {
    "input": ', fillcolor="#e6f4ea"',
    "output": ', fillcolor="#e6f4ea"',
    "synthesis": ', fillcolor="#f3e8fb"',
    "module": ', fillcolor="#e9edf3"',
    "repeat": ', shape=box3d, fillcolor="#dfeafa"',
    "kept": ', fillcolor="#dfeafa"',
    "replaced": ', fillcolor="#ffe3c2", color="#c25e00", penwidth=2',
    "refused": ', fillcolor="#eceff3", style="filled,dashed"',
}


def dot_of(folded: Folded) -> str:
    """The text of a DOT file."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["quoted"] = _quoted
    template = environment.from_string(files(__package__).joinpath("picture.dot.jinja").read_text("utf-8"))
    # A dashed line leads from an item to the first one of the cluster that shows what is inside it.
    first = {card.key: next(i for i, item in enumerate(card.items) if item is not None) for card in folded.cards}
    return template.render(lines=folded.lines, cards=folded.cards, looks=defaultdict(str, _LOOKS), first=first)


def _quoted(text: str) -> str:
    """A string of DOT; a backslash would begin an escape, as would a NUL end the text."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\ufffd")
    return '"' + plain.replace("\r", " ").replace("\n", "\\n") + '"'
