"""Last layers: what their weights read, and weights and gains recovered from the moments of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx.fitting.last_layer import LayerFit, layer_of, read_by
from repl_fx.graph.roles import CONVOLUTIONS, LINEAR
from repl_fx.surrogates.shared.fitted_starts import LastLayer
from repl_fx.surrogates.shared.synthesis import Synthesis

_SCALE = torch.tensor([1.0, 2.0, 0.0, 3.0])


class _Gains(Synthesis):
    """A weight (4, 3) of which a gain makes two columns or one, or none."""

    def __init__(self) -> None:
        super().__init__(train_neighbours=True)
        self.gain, self.bias = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(4))

    def synthesise(self, *weights: Tensor) -> Any:
        (vectors,) = weights
        place = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]]).to(vectors)
        return (vectors * self.gain) @ place, self.bias


class _Own(Synthesis):
    def __init__(self) -> None:
        super().__init__(train_neighbours=True)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))

    def synthesise(self, *weights: Tensor) -> Any:
        return self.weight, self.bias


class _Net(nn.Module):
    """A layer scale and an order of positions behind a layer, of which one position is left out."""

    def __init__(self, synthesis: Synthesis) -> None:
        super().__init__()
        self.synthesis, self.vectors = synthesis, nn.Parameter(torch.randn(4, 5))
        self.register_buffer("scale", _SCALE)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        made = self.synthesis(self.vectors)
        value = LINEAR(h, made[0], made[1])
        out: Tensor = x + (value * self.scale)[:, [2, 0, 3]].transpose(1, 2)
        return out


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(net: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    gm = fx.GraphModule(net, _Leaves().trace(net))
    return gm, {node.name: node for node in gm.graph.nodes}


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cuts", [[30], [1, 20, 9]], ids=str)
@torch.no_grad()
def test_the_numbers_that_made_the_values_are_found(gains: bool, bias: bool, cuts: list[int]) -> None:
    torch.manual_seed(0)
    synthesis: Any = _Gains() if gains else _Own()
    if not bias:
        synthesis.bias.zero_()
    gm, nodes = _traced(_Net(synthesis))
    start = LastLayer((0, "gain" if gains else "weight"), (1, "bias") if bias else None, gains)
    layer = layer_of(gm, nodes["synthesis"], start)
    assert layer is not None and layer.target is LINEAR
    point = next(node for node in reversed(gm.graph.nodes) if node.op != "output")
    sums = LayerFit(gm, nodes["synthesis"], start, point)
    x, h = torch.randn(30, 4, 3), torch.randn(30, 4, 3)
    y = gm(x, h)
    for part in zip(*(torch.split(all_of_it, cuts) for all_of_it in (x, h, y)), strict=True):
        values: dict[Any, Any] = {nodes["x"]: part[0], nodes["h"]: part[1], layer: torch.randn(len(part[0]), 4, 4)}
        values |= {node: None for node in layer.all_input_nodes if node not in values}
        if sums.rows == 0:
            assert sums.affine(values) and sums.axis == 1
        sums.add(values, part[2])
    assert sums.rows == 90 and sums.numbers == (5 if gains else 12) + (4 if bias else 0)
    found = sums.solve(1e-10)
    wanted = {name: value.clone() for name, value in synthesis.named_parameters() if name in found}
    if gains:
        # The last makes nothing.
        assert found["gain"][-1] == 0
        torch.testing.assert_close(found["gain"][:4].float(), wanted["gain"][:4], rtol=1e-3, atol=1e-3)
    else:
        # Of the third channel, whose scale is zero, nothing is known.
        seen = _SCALE > 0
        torch.testing.assert_close(found["weight"].float()[seen], wanted["weight"][seen], rtol=1e-4, atol=1e-4)
        assert not found["weight"][~seen].any()
    if bias:
        torch.testing.assert_close(found["bias"].float()[_SCALE > 0], wanted["bias"][_SCALE > 0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_behind_a_norm_nothing_is_affine() -> None:
    class _Normed(_Net):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            made = self.synthesis(self.vectors)
            return F.layer_norm(LINEAR(h, made[0], made[1]), (4,))

    gm, nodes = _traced(_Normed(_Own()))
    point = next(node for node in reversed(gm.graph.nodes) if node.op != "output")
    sums = LayerFit(gm, nodes["synthesis"], LastLayer((0, "weight"), (1, "bias"), gains=False), point)
    read = *sums.layer.all_input_nodes, *sums.tail.given
    values: dict[Any, Any] = {node: torch.randn(5, 4) for node in (*read, sums.layer)}
    assert not sums.affine(values)


@pytest.mark.parametrize("kernel", [1, 3])
@torch.no_grad()
def test_windows_of_a_convolution_are_what_it_reads(kernel: int) -> None:
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    weight, value = torch.randn(4, 3, kernel, kernel), torch.randn(2, 3, 5, 5)
    pad = kernel // 2
    made = graph.call_function(CONVOLUTIONS[2], (x, w, None, [1, 1], [pad, pad], [1, 1], 1))
    graph.output(made)
    rows = read_by(fx.GraphModule(nn.Module(), graph), made, {x: value, w: weight}).reshape(2, 25, -1)
    expected = F.conv2d(value, weight, padding=pad).flatten(2).transpose(1, 2)
    torch.testing.assert_close((rows @ weight.double().flatten(1).t()).float(), expected)


def test_a_layer_of_another_kind_is_none() -> None:
    class _Other(_Net):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.matmul(h, self.synthesis(self.vectors)[0].t()) + x

    gm, nodes = _traced(_Other(_Own()))
    assert layer_of(gm, nodes["synthesis"], LastLayer((0, "weight"), None, gains=False)) is None
