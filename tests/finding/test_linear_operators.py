"""Linear operators: which weight each reads, how that is laid out, and along which axis it works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.finding.linear_operators import LinearOperator, linear_operator_of, matrix_like
from repl_fx.graph.captured import CapturedModule

aten = torch.ops.aten


class Standardised(nn.Conv2d):
    """Reads another weight than its own."""

    def forward(self, input: Tensor) -> Tensor:
        made: Tensor = self._conv_forward(input, self.weight - self.weight.mean(), self.bias)
        return made


def _of_module(module: nn.Module) -> LinearOperator | None:
    graph, root = fx.Graph(), nn.Module()
    root.add_module("layer", module)
    node = graph.call_module("layer", (graph.placeholder("x"),))
    graph.output(node)
    return linear_operator_of(CapturedModule(root, graph), node)


@pytest.mark.parametrize(
    ("module", "kind", "axis", "bias"),
    [(nn.Linear(4, 6), "linear", -1, True), (nn.Conv1d(4, 6, 1, bias=False), "conv", 1, False)],
    ids=["linear", "conv"],
)
def test_layers_say_where_they_work(module: nn.Module, kind: str, axis: int, bias: bool) -> None:
    found = _of_module(module)
    assert found is not None and (found.kind, found.axis, found.bias) == (kind, axis, bias)
    assert (found.weight, found.transposed, found.input.name) == ("layer.weight", False, "x")


@pytest.mark.parametrize(
    ("settings", "centred"),
    [
        ({"padding": 1}, True),
        ({"padding": 2, "dilation": 2, "groups": 2}, True),
        ({"padding": "same", "dilation": 2}, True),
        ({"padding": 0}, False),
        ({"padding": 1, "stride": 2}, False),
        ({"padding": 1, "padding_mode": "circular"}, False),
        ({"padding": "same", "kernel_size": 2}, False),
    ],
    ids=str,
)
def test_convolutions_that_look_to_both_sides_alike(settings: dict[str, Any], centred: bool) -> None:
    found = _of_module(nn.Conv2d(4, 6, **{"kernel_size": 3, **settings}))
    assert found is not None and found.centred is centred
    assert found.groups == settings.get("groups", 1) and found.dilation == (settings.get("dilation", 1),) * 2


@pytest.mark.parametrize("module", [Standardised(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)], ids=["derived", "transposed"])
def test_other_layers_with_a_matrix_are_not_understood(module: nn.Module) -> None:
    found = _of_module(module)
    assert found is not None and (found.kind, found.weight) == ("other", None)


@pytest.mark.parametrize("module", [nn.LayerNorm((4, 5)), nn.Embedding(4, 5), nn.ReLU(), nn.PReLU(5)], ids=str)
def test_layers_that_do_not_mix_are_none(module: nn.Module) -> None:
    assert _of_module(module) is None


@pytest.mark.parametrize(
    ("target", "kind", "weight", "transposed"),
    [
        (lambda graph, x, w: graph.call_function(aten.linear.default, (x, w)), "linear", "w", False),
        (lambda graph, x, w: graph.call_function(aten.mm.default, (x, w)), "linear", "w", True),
        (lambda graph, x, w: graph.call_function(aten.mm.default, (x, _turned(graph, w))), "linear", "w", False),
        (lambda graph, x, w: graph.call_function(aten.mm.default, (w, x)), "other", None, False),
        (lambda graph, x, w: graph.call_function(aten.einsum.default, ("ij,jk", [x, w])), "other", None, False),
    ],
    ids=["linear", "product", "turned", "from the left", "einsum"],
)
def test_functions_of_a_parameter(target: Any, kind: str, weight: str | None, transposed: bool) -> None:
    graph, root = fx.Graph(), nn.Module()
    root.register_parameter("w", nn.Parameter(torch.randn(4, 4)))
    x, w = graph.placeholder("x"), graph.get_attr("w")
    w.meta["val"] = torch.empty(4, 4, device="meta")
    node = target(graph, x, w)
    graph.output(node)
    found = linear_operator_of(CapturedModule(root, graph), node)
    assert found is not None and found.input is x
    assert (found.kind, found.weight, found.transposed) == (kind, weight, transposed)


def _turned(graph: fx.Graph, weight: fx.Node) -> fx.Node:
    node = graph.call_function(aten.t.default, (weight,))
    node.meta["val"] = weight.meta["val"].t()
    return node


def test_biases_and_scales_do_not_mix() -> None:
    shapes = [(4,), (4, 1, 1), (1, 1), (4, 4), (4, 1, 3)]
    assert [matrix_like(torch.empty(shape)) for shape in shapes] == [False, False, False, True, True]
