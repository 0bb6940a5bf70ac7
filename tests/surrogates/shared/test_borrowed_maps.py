"""Heads of a borrowed attention map, whatever the number of heads is where the map is made."""

from __future__ import annotations

import pytest
import torch

import repl_fx
from repl_fx.surrogates.shared.borrowed_maps import BorrowedMap, Heads, selection
from tests.nets import TokenNet


@pytest.mark.parametrize(
    ("chosen", "total", "among", "expected"),
    [
        ((1, 3), 4, 4, (1, 3)),
        # Each head of keys is repeated for two of queries.
        ((1, 3), 4, 8, (2, 6)),
        # One head of keys stands for two.
        ((0, 3), 4, 2, (0, 1)),
    ],
)
def test_heads_are_found_among_more_or_fewer(
    chosen: tuple[int, ...], total: int, among: int, expected: tuple[int, ...]
) -> None:
    heads = Heads(chosen, total)
    assert heads.among(among) == expected
    value = torch.arange(among * 6.0).reshape(1, among, 3, 2)
    assert torch.equal(heads.of(value), value[:, list(expected)])


def test_numbers_that_are_no_multiples_are_refused() -> None:
    with pytest.raises(ValueError, match="6 heads cannot be told from 4"):
        Heads((1,), 4).among(6)


def test_heads_at_even_distances_are_a_view() -> None:
    assert selection((1, 3, 5)) == slice(1, 6, 2)
    assert selection((2,)) == slice(2, 3, 1)
    assert selection((0, 1, 3)) == [0, 1, 3]
    assert selection((3, 1)) == [3, 1]


def test_a_map_is_told_by_its_module_and_its_place_there() -> None:
    gm = repl_fx.capture(TokenNet(depth=3), (torch.randn(2, 6, 16),))
    core = [n for n in gm.graph.nodes if "scaled_dot_product" in str(n.target)][1]
    found = BorrowedMap.made_at(core, Heads((0,), 2), Heads((0,), 2), scaled=True)
    assert (found.module, found.number, found.count) == ("blocks.1.attn", 0, 1)
