"""Options of another kind are refused in a line, before any work."""

from __future__ import annotations

import re
from typing import Any

import pytest

import repl_fx
from repl_fx.errors import BadInput
from tests.nets import MlpNet, tokens


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"every": "3"}, "every is '3'; give an int, 2 or more"),
        ({"every": 2.5}, "every is 2.5; give an int, 2 or more"),
        ({"seed": None}, "seed is None; give an int"),
        ({"surrogate": ["blend"]}, "surrogate is ['blend']; give the key of a surrogate, such as 'blend'"),
        # Letter by letter, nothing stayed.
        ({"ignore": "head"}, "ignore is 'head'; give a list of globs, such as ['head']"),
        ({"ignore": [1]}, "ignore is [1]; give a list of globs, such as ['head']"),
        ({"blocks": "blocks.1"}, "blocks is 'blocks.1'; give a list of names and numbers, such as [2, 'layers.4']"),
        ({"blocks": 2}, "blocks is 2; give a list of names and numbers, such as [2, 'layers.4']"),
        ({"blocks": [None]}, "blocks is [None]; give a list of names and numbers, such as [2, 'layers.4']"),
    ],
)
def test_another_kind_is_a_line(option: dict[str, Any], line: str) -> None:
    told: list[str] = []
    with pytest.raises(BadInput, match=f"^{re.escape(line)}$"):
        repl_fx.transform(MlpNet(), (tokens(),), progress=told.append, **option)
    assert not told


@pytest.mark.parametrize("blocks", [[2], ("2",), {"blocks.1"}])
def test_any_collection_will_do(blocks: Any) -> None:
    result = repl_fx.transform(MlpNet(), (tokens(),), blocks=blocks)
    assert [replacement.block for replacement in result.plan.replacements] == ["blocks.1"]
