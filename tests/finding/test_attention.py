"""Attention found by structure, and where its heads keep their values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.finding.attention import Attention, distinct_heads, find_attention, gives_positions_in_order
from repl_fx.finding.branches import split_branches
from tests.finding.layouts import WIDTH, Net
from tests.nets import TokenNet, images, tokens


def _found(kind: str) -> Attention | str:
    # As many positions as a head has channels: sizes alone would not tell them apart.
    gm = repl_fx.capture(Net(kind), (torch.randn(2, 4, WIDTH),))
    (repeat,) = repl_fx.find_repeats(gm)
    (branch,) = split_branches(gm, repeat.blocks[1]).branches
    found = find_attention(branch)
    assert isinstance(found, str) or gives_positions_in_order(branch, found)
    return found


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("fused", range(16, 20), range(20, 24)),
        ("softmax", range(16, 20), range(20, 24)),
        ("head by head", range(8, 12), range(20, 24)),
        ("flat", range(16, 20), range(20, 24)),
        ("positions first", range(16, 20), range(20, 24)),
        ("apart", range(4), range(4, 8)),
        ("grouped", range(4), range(4)),
        ("grouped, cached", range(4), range(4)),
    ],
)
def test_the_units_of_each_head(kind: str, first: range, second: range) -> None:
    found = _found(kind)
    assert isinstance(found, Attention)
    assert found.units == (tuple(first), tuple(second))
    assert found.batch_first == (kind != "positions first")
    assert found.scaled == (kind != "softmax")
    assert list(distinct_heads(found)) == ([0] if kind.startswith("grouped") else [0, 1])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("torn", "position by position"), ("values normalised", "no view of what one linear layer makes")],
)
def test_what_is_no_attention_over_positions_says_so(kind: str, reason: str) -> None:
    found = _found(kind)
    assert isinstance(found, str) and reason in found


def test_a_convolution_has_no_attention() -> None:
    from tests.nets import ConvNet

    gm = repl_fx.capture(ConvNet(), (images(),))
    repeat = max(repl_fx.find_repeats(gm), key=len)
    (branch,) = split_branches(gm, repeat.blocks[1]).branches
    assert "0 products with an attention map" in str(find_attention(branch))


@pytest.mark.slow
def test_a_number_of_inputs_that_depends_on_values_is_a_reason() -> None:
    """Pictures that are padding are taken out first, say."""

    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = TokenNet(depth=3)

        def forward(self, x: Tensor, real: Tensor) -> Tensor:
            out: Tensor = self.net(x[real])
            return out

    x, real = tokens(4), torch.tensor([True, False, True, True])
    with pytest.raises(repl_fx.NothingToReplace, match="depends on the values of other tensors"):
        repl_fx.transform(Picking(), (x, real), surrogate="reuse")
    result = repl_fx.transform(Picking(), (x, real))
    assert [replacement.surrogate for replacement in result.plan.replacements] == ["bottleneck"]
    assert result.module(x, ~real).shape == (1, 10)
