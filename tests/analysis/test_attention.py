"""Attention found by structure, and where its heads keep their values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.analysis.attention import Attention, distinct_heads, find_attention, gives_positions_in_order
from repl_fx.analysis.branches import split_branches
from tests.nets import TokenNet, images, tokens

WIDTH, HEADS = 8, 2


class Layout(nn.Module):
    """Attention of two heads of 4 channels, written in one of many ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        kept = WIDTH if kind != "grouped" else 4
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, kept), nn.Linear(WIDTH, kept)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, 3 * WIDTH) / 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if self.kind in ("fused", "softmax", "values normalised"):
            q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, 4).permute(2, 0, 3, 1, 4)
            v = self.norm(v) if self.kind == "values normalised" else v
        elif self.kind == "head by head":
            q, k, v = self.qkv(x).view(batch, length, HEADS, 12).transpose(1, 2).chunk(3, -1)
        elif self.kind == "flat":
            made = torch.addmm(torch.zeros(3 * width), x.reshape(-1, width), self.weight).view(batch, length, -1)
            q, k, v = (part.view(batch, length, HEADS, 4).transpose(1, 2) for part in torch.split(made, width, -1))
        elif self.kind == "positions first":
            made = self.qkv(x.transpose(0, 1)).view(length, batch, 3, HEADS, 4)
            q, k, v = (made[:, :, i].permute(1, 2, 0, 3) for i in range(3))
        elif self.kind == "torn":
            # One head for each half of the positions.
            q, k, v = (layer(x).reshape(batch, 2, length, 4) for layer in (self.q, self.k, self.v))
        else:
            q, k, v = (layer(x).view(batch, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            if self.kind == "grouped":
                k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(batch, 2, length, 4) for t in (k, v))
        if self.kind == "softmax":
            out = F.dropout(torch.softmax(q @ k.transpose(-1, -2) / 2, -1), 0.1, self.training) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        if self.kind == "positions first":
            return self.proj(out.permute(2, 0, 1, 3).reshape(-1, width)).view(length, batch, width).transpose(0, 1)  # type: ignore[no-any-return]
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Net(nn.Module):
    """Three residual attentions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.attentions = nn.ModuleList(Layout(kind) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return x


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
    ],
)
def test_the_units_of_each_head(kind: str, first: range, second: range) -> None:
    found = _found(kind)
    assert isinstance(found, Attention)
    assert found.units == (tuple(first), tuple(second))
    assert found.batch_first == (kind != "positions first")
    assert found.scaled == (kind != "softmax")
    assert list(distinct_heads(found)) == ([0] if kind == "grouped" else [0, 1])


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
