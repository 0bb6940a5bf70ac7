"""Tables as the terminal shows them."""

from __future__ import annotations

import io

from rich.console import Console

from repl_fx.display.columns import Table


def text_of(table: Table, encoding: str = "utf-8", width: int = 80) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    # As the command line prints where there is no terminal.
    Console(file=file, width=width).print(table)
    file.flush()
    return raw.getvalue().decode(encoding)


def row_of(text: str, first: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])
