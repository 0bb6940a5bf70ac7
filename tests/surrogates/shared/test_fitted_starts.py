"""What surrogates say can be fitted is what their values are affine in, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.fitting.channel_terms import ChannelFit
from repl_fx.fitting.last_layer import LayerFit
from repl_fx.fitting.stand_ins import GraphStandIn, stand_ins
from repl_fx.graph.recording import watched
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, LastLayer
from tests.nets import ConvNet, TokenNet, images, tokens
from tests.surrogates.nets import NETS

_MORE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    **NETS,
    "post norm": lambda: (TokenNet(depth=3, post_norm=True), tokens()),
    "no spine": lambda: (ConvNet(depth=3, plain=True), images()),
}
# How many points the first affine one is behind the output, for each start of the block: 0 is the output.
CASES: list[tuple[str, str, dict[str, Any], list[int]]] = [
    ("tokens", "bottleneck", {}, [0]),
    ("tokens", "bottleneck", {"weights": "own"}, [0]),
    ("post norm", "bottleneck", {}, [1]),
    ("batch norm", "bottleneck", {}, [1]),
    ("batch norm", "bottleneck", {"weights": "own"}, [1]),
    ("layer scale", "bottleneck", {}, [0]),
    ("in place", "bottleneck", {}, [1]),
    ("tokens", "reuse", {}, [0]),
    ("tokens", "reuse", {"weights": "own"}, [0]),
    ("post norm", "reuse", {"heads": 2}, [1]),
    ("batch norm", "slim", {}, [1]),
    ("batch norm", "slim", {"weights": "own", "width": 8}, [1]),
    ("layer scale", "slim", {}, [0]),
    ("layer scale", "slim", {"weights": "own"}, [0]),
    ("in place", "slim", {"weights": "own"}, [1]),
    ("tokens", "coarse", {}, [0, 0]),
    ("tokens", "coarse", {"weights": "own"}, [0, 0]),
    ("sequence", "coarse", {}, [0, 0]),
    ("batch norm", "coarse", {}, [1]),
    ("layer scale", "coarse", {}, [0]),
    ("bare weights", "coarse", {"weights": "own"}, [0]),
    ("tokens", "blend", {}, [1, 0]),
    ("tokens", "blend", {"per": "tensor"}, [1, 0]),
    ("batch norm", "blend", {}, [1]),
    ("no spine", "blend", {}, [1]),
]


@pytest.mark.parametrize(
    ("net", "surrogate", "settings", "places"), CASES, ids=[f"{a} {b} {c or ''}" for a, b, c, _ in CASES]
)
def test_values_are_affine_in_what_is_fitted(
    net: str, surrogate: str, settings: dict[str, Any], places: list[int]
) -> None:
    torch.manual_seed(0)
    model, x = _MORE[net]()
    result = repl_fx.transform(model.double().eval(), (x.double(),), surrogate=surrogate, settings=settings)
    (one,) = stand_ins(result)
    assert len(one.starts) == len(places)
    for (node, start), place in zip(one.starts, places, strict=True):
        affine = [_is_affine(one, node, start, point, x.double()) for point in one.points[node, start][: place + 1]]
        assert affine == [False] * place + [True]
        # What a fit finds is the same.
        values = _values(one, set(one.watched), x.double())
        for point, exact in zip(one.points[node, start], affine, strict=False):
            if isinstance(start, ChannelTerms):
                assert ChannelFit(one.graph, node, start, point).affine(values) is exact
            elif isinstance(start, LastLayer):
                assert LayerFit(one.graph, node, start, point).affine(values) is exact


def _is_affine(one: GraphStandIn, node: fx.Node, start: Any, point: fx.Node, x: Tensor) -> bool:
    """Whether f(a) + f(b) = f(a + b) + f(0)."""
    module = one.graph.get_submodule(str(node.target))
    if isinstance(start, LastLayer):
        names = [name for _, name in filter(None, (start.weight, start.bias))]
    else:
        names = [term.parameter for term in start.terms]
    fitted = [module.get_parameter(name) for name in dict.fromkeys(names)]
    before = [parameter.detach().clone() for parameter in fitted]
    a, b = ([torch.randn_like(parameter) for parameter in fitted] for _ in range(2))
    made = []
    for theta in (a, b, [i + j for i, j in zip(a, b, strict=True)], [torch.zeros_like(i) for i in a]):
        with torch.no_grad():
            for parameter, value in zip(fitted, theta, strict=True):
                parameter.copy_(value)
        made.append(_values(one, {point}, x)[point])
    with torch.no_grad():
        for parameter, value in zip(fitted, before, strict=True):
            parameter.copy_(value)
    assert (made[2] - made[3]).norm() > 1e-3
    return bool((made[0] + made[1] - made[2] - made[3]).norm() < 1e-9 * made[2].norm())


def _values(one: GraphStandIn, nodes: set[fx.Node], x: Tensor) -> dict[fx.Node, Any]:
    found: dict[fx.Node, Any] = {}

    def note(node: fx.Node) -> Callable[[Any], None]:
        # What comes later may write over it.
        return lambda value: found.update({node: value.clone() if isinstance(value, Tensor) else value})

    with torch.no_grad():
        watched(one.graph, {node: note(node) for node in nodes}).eval()(x.clone())
    return found
