"""The document as JSON, and back."""

from __future__ import annotations

import msgspec
import pytest

from repl_fx.reporting.model_graph.document import Box, Document, Layout, Route, Value
from tests.model_graphs import small_document


@pytest.mark.slow
def test_json_reads_back() -> None:
    document = small_document()
    assert msgspec.json.decode(document.to_json(), type=Document) == document


def test_rows_are_arrays_and_defaults_are_left_out() -> None:
    layout = Layout(9, 9, (Box(1, 2, 3, 4),), (Route(0, 0, (5, 6)),))
    assert msgspec.json.encode(layout) == b'{"width":9,"height":9,"boxes":[[1,2,3,4]],"routes":[[0,0,[5,6]]]}'
    assert msgspec.json.encode(Value("int")) == b'{"text":"int"}'
