"""Notes on nodes are of one class for each key."""

from __future__ import annotations

import pytest
from torch import fx

from repl_fx.graph.notes import BLOCK, PASSES_THROUGH, REPLACES, Note, wrong_note
from repl_fx.surrogates.shared.borrowed_maps import BORROWS
from repl_fx.surrogates.shared.fitted_starts import FITTED


def test_a_note_is_found_where_it_was_put() -> None:
    node = fx.Graph().placeholder("x")
    assert REPLACES.of(node) is None and wrong_note(node) is None
    REPLACES.put(node, ("blocks.1", "blend"))
    assert REPLACES.of(node) == node.meta["replaces"] == ("blocks.1", "blend") and BLOCK.of(node) is None
    assert wrong_note(node) is None


@pytest.mark.parametrize("note", [REPLACES, BLOCK, PASSES_THROUGH, FITTED, BORROWS], ids=lambda note: note.key)
def test_a_note_of_another_class_is_named(note: Note[object]) -> None:
    node = fx.Graph().placeholder("x")
    note.put(node, 3.0)
    assert wrong_note(node) == f"its note {note.key} is of the class float, not {note.kind.__name__}"


def test_no_two_kinds_have_one_key() -> None:
    keys = [note.key for note in Note.kinds]
    assert len(keys) == len(set(keys))
