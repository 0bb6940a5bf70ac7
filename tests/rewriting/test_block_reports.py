"""The report says of each block what became of it, and counts its parameters before and after."""

from __future__ import annotations

from typing import Any

import pytest

import repl_fx
from repl_fx.plan import Plan, Refusal, Replacement
from repl_fx.reporting.documents import blocks_document
from repl_fx.rewriting.apply import apply_plan
from repl_fx.rewriting.block_reports import BlockReport, blocks_table, reports_of
from repl_fx.tracing.parts.part_repeats import PartRepeats
from tests.display.shown import row_of, text_of
from tests.nets import ConvNet, TokenNet, images, tokens


def test_each_block_of_a_part_has_a_row() -> None:
    gm = repl_fx.capture(TokenNet(depth=4), (tokens(),))
    repeats = repl_fx.find_repeats(gm)
    (chosen,) = repl_fx.make_plan(gm, repeats, blocks=["blocks.1"], surrogate="blend").replacements
    part = PartRepeats.of("encoder", gm, repeats)
    block, repeat, before, after = ("encoder." + n for n in (chosen.block, chosen.repeat, chosen.before, chosen.after))
    named = Replacement(block, repeat, before, after, "blend", chosen.settings)
    plan = Plan((named,), (Refusal("encoder.blocks.2", "encoder.blocks", "of a whim"),), "")
    (rewritten,) = apply_plan([part], plan).graphs.values()
    rows = reports_of(part, rewritten, plan)
    assert [(row.block, row.status, row.surrogate, row.reason) for row in rows] == [
        ("encoder.blocks.0", "kept", None, None),
        ("encoder.blocks.1", "replaced", "blend", None),
        ("encoder.blocks.2", "refused", None, "of a whim"),
        ("encoder.blocks.3", "kept", None, None),
    ]
    assert rows[1].made_from == (before, after) and (rows[0].made_from, rows[1].left) == (None, "")
    full = repeats[0].blocks[0].size
    assert {row.repeat for row in rows} == {"encoder.blocks"}
    assert [row.parameters_before for row in rows] == [full] * 4
    # Norms stay at their path; the rest is the surrogate's.
    stays = [n for n, _ in rewritten.named_parameters() if n.startswith(("surrogates.", "blocks.1."))]
    left = sum(rewritten.get_parameter(name).numel() for name in stays)
    assert [row.parameters_after for row in rows] == [full, left, full, full] and 0 < left < full


@pytest.mark.parametrize(
    ("surrogate", "settings", "made_from", "left"),
    [
        ("identity", {}, (), ""),
        ("linear", {}, (), ""),
        ("narrow", {"ratio": 0.25}, (), "8 of 32 hidden units"),
        ("slim", {"weights": "own"}, (), ""),
        ("slim", {}, ("blocks.0", "blocks.2"), ""),
        ("reuse", {"weights": "own"}, ("blocks.0",), ""),
        ("reuse", {}, ("blocks.0", "blocks.2"), ""),
    ],
)
def test_a_row_says_what_a_surrogate_is_made_from(
    surrogate: str, settings: dict[str, Any], made_from: tuple[str, ...], left: str
) -> None:
    model = ConvNet() if surrogate == "slim" else TokenNet(depth=3)
    inputs = (images(),) if surrogate == "slim" else (tokens(),)
    result = repl_fx.transform(model, inputs, surrogate=surrogate, settings=settings, blocks=["blocks.1"], check=False)
    assert [(row.made_from, row.left) for row in result.report if row.status == "replaced"] == [(made_from, left)]


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
