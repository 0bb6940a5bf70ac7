"""Tables in one style."""

from __future__ import annotations

import io

from rich.console import Console

from repl_fx.display.columns import Table, numbers, words


def test_cells_are_text_and_words_are_folded() -> None:
    table = Table("Title", (*words("name"), *numbers("number")), [("[bold]" + "long" * 10, "12")])
    file = io.StringIO()
    Console(file=file, width=30).print(table)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0] == "Title" and lines[1].split() == ["name", "number"]
    assert lines[3].startswith("[bold]long") and lines[3].endswith("    12") and lines[4].startswith("long")
