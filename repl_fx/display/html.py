"""Lines and tables as HTML, for notebooks, and as text, for a prompt."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, RenderableType

_WIDTH = 100
# No colours: those of the notebook, light or dark, are right.
_PAGE = (
    '<pre style="color: inherit; background: transparent; line-height: 1.3; overflow-x: auto; white-space: pre">'
    "{code}</pre>"
)


def html_of(*parts: RenderableType) -> str:
    """Lines and tables as one piece of HTML, with an empty line before each table; what they hold is escaped."""
    return _console(*parts).export_html(code_format=_PAGE, inline_styles=True)


def text_of(*parts: RenderableType) -> str:
    """The same as plain text, as a terminal has it."""
    console = _console(*parts)
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


def _console(*parts: RenderableType) -> Console:
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), markup=False, emoji=False, highlight=False)
    for number, part in enumerate(parts):
        if number and not isinstance(part, str):
            console.print()
        console.print(part)
    return console


class Displayed:
    """Shows itself alike in a notebook, as HTML, and at a Python prompt, as text.

    Dataclasses say `repr=False` beside it: theirs writes out all fields, of which some are whole models.
    """

    __slots__ = ()

    def displayed(self) -> Sequence[RenderableType]:
        """The lines and tables of the object: the text of `details`, where it has such a method, else of `str`."""
        details = getattr(self, "details", None)
        return (str(self) if details is None else details(),)

    def __repr__(self) -> str:
        return text_of(*self.displayed())

    def _repr_html_(self) -> str:
        return html_of(*self.displayed())
