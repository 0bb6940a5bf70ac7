"""The table of blocks."""

from __future__ import annotations

from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.reporting.documents import blocks_document
from repl_fx.rewriting.blocks_table import blocks_table
from repl_fx.rewriting.report import BlockReport
from tests.display.shown import row_of, text_of


def test_blocks_with_how_and_why_not() -> None:
    report = (
        BlockReport("b.0", "b", "kept", None, None, 144, 144),
        BlockReport("b.1", "b", "replaced", "blend", None, 144, 4, ("b.0", "b.2")),
        BlockReport("b.2", "b", "refused", None, "it is [red]odd[/red] :smile:", 144, 144),
    )
    plan = Plan((Replacement("b.1", "b", "b.0", "b.2", "blend", {"x": 1}),), (Refusal("b.2", "b", "odd"),), "f")
    text = text_of(blocks_table(report))
    assert row_of(text, "1") == ["1", "b.0", "kept", "144", "144"]
    assert " ".join(row_of(text, "2")) == "2 b.1 replaced 144 4 blend, from b.0 and b.2"
    assert " ".join(row_of(text, "3")) == "3 b.2 refused 144 144 it is [red]odd[/red] :smile:"
    rows = blocks_document(report, plan)
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert rows[1]["made_from"] == ("b.0", "b.2") and rows[1]["settings"] == {"x": 1}
    assert rows[2]["made_from"] is None


def test_a_surrogate_that_is_made_from_its_block_alone() -> None:
    report = (BlockReport("b.0", "b", "replaced", "narrow", None, 144, 72, (), "4 of 8 hidden units"),)
    shown = " ".join(row_of(text_of(blocks_table(report)), "1"))
    assert shown == "1 b.0 replaced 144 72 narrow, 4 of 8 hidden units"


def test_why_a_surrogate_is_not_the_first_choice() -> None:
    report = (BlockReport("b.1", "b", "replaced", "blend", "reuse does not fit", 144, 4, ("b.0", "b.2")),)
    text = " ".join(text_of(blocks_table(report)).split())
    assert text.endswith("blend, from b.0 and b.2; reuse does not fit")
