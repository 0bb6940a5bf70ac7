"""Numbers that each act on one channel: recovered from a network that they made, and refused elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.fitting.channel_terms import ChannelFit
from repl_fx.surrogates.shared.fitted_starts import ChannelTerms, Term


class _Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.gain.reshape(2, 3)
        out: Tensor = x[:, :3] * one + x[:, 3:] * other + self.shift
        return out


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = _Numbers()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([self.numbers(x) + x[:, :3].exp(), x], 1)).t()


_TERMS = ChannelTerms((Term("gain", 0, 3), Term("gain", 3, 3), Term("shift", 0, 1)))


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(terms: ChannelTerms = _TERMS, point: str = "t") -> tuple[fx.GraphModule, dict[str, fx.Node], ChannelFit]:
    torch.manual_seed(0)
    net = _Net()
    gm = fx.GraphModule(net, _Leaves().trace(net))
    nodes = {node.name: node for node in gm.graph.nodes}
    return gm, nodes, ChannelFit(gm, nodes["numbers"], terms, nodes[point])


@pytest.mark.parametrize("cuts", [[60], [1, 39, 20]])
@torch.no_grad()
def test_the_numbers_that_made_the_values_are_found(cuts: list[int]) -> None:
    gm, nodes, sums = _traced()
    wanted = {name: value.clone() for name, value in gm.state_dict().items()}
    x = torch.randn(60, 6)
    y = torch.cat([gm.numbers(x) + x[:, :3].exp(), x], 1)  # type: ignore[operator]
    # The axis of the batch is the last here; no axis behind the first is one of channels.
    assert not sums.affine({nodes["x"]: x, nodes["exp"]: x[:, :3].exp(), nodes["getitem"]: x[:, :3]})
    gm, nodes, sums = _traced(point="cat")
    parts = list(zip(torch.split(x, cuts), torch.split(y, cuts), strict=True))
    assert sums.affine(_given(nodes, parts[0][0])) and sums.axis == 1 and sums.numbers == 7
    for part, made in parts:
        sums.add(_given(nodes, part), made)
    found = sums.solve(1e-9)
    assert sums.rows == 60
    for name, value in found.items():
        torch.testing.assert_close(value.float(), wanted[f"numbers.{name}"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, wanted[name]) for name, value in gm.state_dict().items())


@torch.no_grad()
def test_what_never_is_silent_is_drawn_to_where_it_starts() -> None:
    for silent, wanted in ((True, 0.0), (False, 1.0)):
        gm, nodes, _ = _traced()
        for parameter in gm.parameters():
            parameter.fill_(1.0)
        sums = ChannelFit(gm, nodes["numbers"], ChannelTerms(_TERMS.terms, silent), nodes["cat"])
        x = torch.randn(60, 6)
        assert sums.affine(_given(nodes, x))
        sums.add(_given(nodes, x), torch.randn(60, 9))
        found = sums.solve(1e9)
        assert all(torch.allclose(value, torch.full_like(value, wanted), atol=1e-6) for value in found.values())


def test_behind_a_relu_and_of_other_channels_nothing_is_affine() -> None:
    x = torch.randn(60, 6)
    _, nodes, sums = _traced(point="relu")
    assert not sums.affine(_given(nodes, x))
    crossed = ChannelTerms((Term("gain", 1, 3),))
    _, nodes, sums = _traced(crossed, "cat")
    assert not sums.affine(_given(nodes, x))


def _given(nodes: dict[str, fx.Node], x: Tensor) -> dict[fx.Node, Tensor]:
    return {nodes["x"]: x, nodes["getitem"]: x[:, :3], nodes["exp"]: x[:, :3].exp()}
