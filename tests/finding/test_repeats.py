"""Repeats together are a tuple, and a table in notebooks."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

import repl_fx
from repl_fx.finding.blocks import Repeat
from repl_fx.finding.repeats import Repeats, repeats_table
from tests.display.shown import row_of, text_of
from tests.nets import TokenNet, tokens


def test_they_are_a_tuple_in_all_that_a_tuple_does() -> None:
    found = repl_fx.find_repeats(repl_fx.capture(TokenNet(), (tokens(),)))
    assert type(found) is Repeats and isinstance(found, tuple)
    (repeat,) = found
    assert isinstance(repeat, Repeat) and found == (repeat,) and hash(found) == hash((repeat,))
    assert found[0] is repeat and found[:1] == (repeat,) and (*found, 1) == (repeat, 1)
    # What a tuple of plain values does in pickles; the nodes of a graph have theirs elsewhere.
    for plain in (Repeats(), Repeats([1, 2])):  # type: ignore[list-item]
        for again in (pickle.loads(pickle.dumps(plain)), copy.deepcopy(plain)):
            assert type(again) is Repeats and again == plain


def test_notebooks_show_a_table() -> None:
    class Odd(nn.Sequential):
        pass

    model = Odd()
    model.add_module("<b>odd</b>", TokenNet())
    found = repl_fx.find_repeats(repl_fx.capture(model, (tokens(),)))
    shown = found._repr_html_()
    assert "&lt;b&gt;odd&lt;/b&gt;.blocks" in shown and "<b>" not in shown
    assert (
        repl_fx.find_repeats(repl_fx.capture(nn.Linear(2, 2), (torch.ones(2, 2),)))
        ._repr_html_()
        .count("nothing repeats")
    )


def test_shares_are_of_a_model_whose_costs_are_known() -> None:
    found = repl_fx.find_repeats(repl_fx.capture(TokenNet(), (tokens(),)))
    text = text_of(repeats_table(found))
    assert "share" not in text and row_of(text, "1")[:3] == ["1", found[0].name, str(len(found[0]))]
