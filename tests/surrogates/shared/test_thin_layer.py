"""Thin layers: how slices of neighbours get the sizes of the removed block."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

import repl_fx
from repl_fx.surrogates.shared.thin_layer import ThinSynthesis, _fit, _folded
from tests.nets import ConvNet, as_after_training, images
from tests.surrogates.test_slim import Shrinking


@given(rows=st.integers(1, 3), have=st.integers(1, 9), size=st.integers(1, 9))
def test_columns_are_folded_or_come_again(rows: int, have: int, size: int) -> None:
    given_ = torch.randn(rows, have, dtype=torch.float64)
    expected = torch.zeros(rows, size, dtype=torch.float64)
    for column in range(max(have, size)):
        if have >= size:
            expected[:, column % size] += given_[:, column]
        else:
            expected[:, column] = given_[:, column % have]
    torch.testing.assert_close(_fit(given_, size), expected)


@given(have=st.integers(1, 9), count=st.integers(1, 9), inner=st.lists(st.integers(1, 3), max_size=3))
def test_rows_are_folded_or_come_again(have: int, count: int, inner: list[int]) -> None:
    given_ = torch.randn(have, *inner, dtype=torch.float64)
    expected = torch.zeros(count, *inner, dtype=torch.float64)
    for row in range(max(have, count)):
        if have >= count:
            expected[row % count] += given_[row]
        else:
            expected[row] = given_[row % have]
    torch.testing.assert_close(_folded(given_, count), expected)


def _syntheses(gm: torch.fx.GraphModule) -> list[ThinSynthesis]:
    return [module for module in gm.modules() if isinstance(module, ThinSynthesis)]


def test_weights_of_one_shape_are_blended_together_and_others_one_by_one() -> None:
    settings = {"weights": "neighbours"}
    gm = repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="bottleneck", settings=settings).graph_module
    assert all(len(piece.sources) == 2 for made in _syntheses(gm) for piece in made.pieces)

    x = torch.randn(2, 8, 16, 16)
    gm = repl_fx.transform(Shrinking(), (x,), surrogate="bottleneck", settings=settings).graph_module
    made = _syntheses(gm)
    assert {len(piece.sources) for synthesis in made for piece in synthesis.pieces} == {1, 2}
    as_after_training(gm)
    gm(x).square().sum().backward()
    for name in ("blocks.0.conv1.weight", "blocks.2.conv1.weight"):
        gradient = gm.get_parameter(name).grad
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.any()
    folded = repl_fx.fold(gm.eval())
    torch.testing.assert_close(folded(x), gm(x), rtol=0, atol=0)
