"""Tables in one style."""

from __future__ import annotations

import io

from rich.console import Console

from repl_fx.display.columns import Column, Table, numbers, words
from tests.display.shown import text_of


def test_cells_are_text_and_words_are_folded() -> None:
    table = Table("Title", (*words("name"), *numbers("number")), [("[bold]" + "long" * 10, "12")])
    file = io.StringIO()
    Console(file=file, width=30).print(table)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[0] == "Title" and lines[1].split() == ["name", "number"]
    assert lines[3].startswith("[bold]long") and lines[3].endswith("    12") and lines[4].startswith("long")


def _lines(table: Table, width: int, encoding: str = "utf-8") -> list[str]:
    lines = [line.rstrip() for line in text_of(table, encoding, width).rstrip().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


def test_columns_without_room_stand_below_behind_the_names_of_their_rows() -> None:
    figures = [f"{number}.0e-07" for number in range(1, 7)]
    columns = (*words("output"), *numbers(*"abcdef"), Column("verdict", "word"))
    table = Table("Title", columns, [("a_name_of_some_length", *figures, "equal")])
    lines = _lines(table, 40)
    assert sum(line.startswith("output") for line in lines) == 4 and lines.count("Title") == 1
    found = " ".join(lines).split()
    assert [cell for cell in found if cell in figures] == figures and "equal" in found
    assert sum(line.startswith("output") for line in _lines(table, 100)) == 1


def test_a_long_parent_is_whole_once_where_room_is_short() -> None:
    one, other = "backbone.encoder.transformer_layers", "backbone.decoder.transformer_layers"
    rows = [(f"{path}.{n}.out", "9", f"made of {path}.{n - 1} and x.{n}") for path in (one, other) for n in (1, 2)]
    table = Table("Blocks", (*words("block"), *numbers("n"), *words("how")), rows)
    shown = " ".join(_lines(table, 50)[3:])
    assert shown.count("made of ….") == 4 and shown.count("….2.out") == 2 and "….0 and x.1" in shown
    assert "…" not in text_of(table, width=200)
    assert "...." in text_of(table, "latin-1", 50) and "?" not in text_of(table, "latin-1", 50)
    files = Table("Files", words("file"), [("long/path/to.a.file/model.py",)] * 2 + [("x.a",), ("x.b",)])
    assert "…" not in text_of(files, width=20)


def test_a_sentence_is_said_once_where_room_is_short() -> None:
    why = "there is no block in front of it"
    table = Table("Blocks", words("block", "why"), [("a", why), ("b", why), ("c", "other"), ("d", why)])
    lines = _lines(table, 30)
    assert [line.split(maxsplit=1)[1] for line in lines if line[:2] in ("b ", "c ")] == ["as above", "other"]
    assert "as above" not in text_of(table)
