"""Tests for repl_fx.tracing.sizes_first: arithmetic on sizes goes in front, once, in an order of its own."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.tracing.sizes_first import sizes_first_


class Late(nn.Module):
    """Computes sizes between its layers, some of them twice, in one order or another."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.turned:
            rows, columns = x.shape[1] * 3, x.shape[0] * 2
        else:
            columns, rows = x.shape[0] * 2, x.shape[1] * 3
        y = x.repeat(2, 3, 1).view(columns, rows, 4)
        return self.layer(y)[: x.shape[0] * 2 - 1]  # type: ignore[no-any-return]


def _listed(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes]


def test_sizes_are_in_one_order_in_front_of_the_layers() -> None:
    x = torch.randn(2, 3, 4)
    listed = []
    for turned in (False, True):
        model = Late(turned)
        gm = repl_fx.capture(model, (x,))
        before = len(gm.graph.nodes)
        sizes_first_(gm.graph)
        gm.graph.lint()
        gm.recompile()
        assert len(gm.graph.nodes) <= before
        listed.append(_listed(gm.graph))
        sizes = [i for i, n in enumerate(gm.graph.nodes) if isinstance(n.meta.get("val"), torch.SymInt)]
        assert len(sizes) >= 4
        assert max(sizes) < listed[-1].index("layer")
        other = torch.randn(4, 5, 4)
        assert torch.equal(gm(other), model(other))
        sizes_first_(gm.graph)
        assert _listed(gm.graph) == listed[-1]
    assert listed[0] == listed[1]


def test_a_size_of_what_the_graph_computes_stays_behind_it() -> None:
    class Selects(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found = x[x > 0].exp()
            return found.new_ones(found.shape[0] * 2)

    gm = repl_fx.capture(Selects(), (torch.randn(3, 4),))
    sizes_first_(gm.graph)
    gm.graph.lint()
    gm.recompile()
    assert gm(torch.ones(2, 4)).shape == (16,)
