"""Networks that show values as they run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.fitting.networks import Network, NetworkPair, Reached
from repl_fx.running.batches import Batch, Batches
from repl_fx.running.opaque_outputs import equal_inside
from tests.nets import ConvNet, images


def test_each_run_keeps_what_it_was_asked_for_and_leaves_the_model() -> None:
    net = ConvNet(depth=3).train()
    x = images(8)
    result = repl_fx.transform(net, (x,), surrogate="identity")
    graph = result.captured
    places = [node for node in graph.graph.nodes if node.op == "call_module"]
    network = Network(result, {"": graph})
    stem = next(node for node in places if node.target == "stem")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    (batch,) = Batches([x], nn.Identity())
    values: dict[Any, Any] = network.values(batch, [stem])
    assert values.keys() == {stem}
    torch.testing.assert_close(values[stem], net.stem(x))
    assert network.values(batch, places).keys() == set(places)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and not any(
        node.op == "call_module" and "watch" in str(node.target) for node in graph.graph.nodes
    )


class InHalf(ConvNet):
    """Opens a region of its own, which a run that ends inside would leave open."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            made: Tensor = super().forward(x)
        return made


@pytest.mark.parametrize(("kind", "wholly"), [(ConvNet, False), (InHalf, True)])
def test_a_run_ends_at_the_last_value_that_is_wanted(kind: type[ConvNet], wholly: bool) -> None:
    x = images(8)
    result = repl_fx.transform(kind(depth=3), (x,), surrogate="identity")
    graph = result.captured
    places = [node for node in graph.graph.nodes if node.op == "call_module"]
    network = Network(result, {"": graph})
    (batch,) = Batches([x], nn.Identity())
    ran: list[str] = []
    for name, module in network.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    network.values(batch, places[:2])
    assert (str(places[2].target) in ran) == wholly
    assert not torch.is_autocast_enabled("cpu")
    ran.clear()
    network.values(batch, places)
    assert {str(node.target) for node in places} <= {*ran}


class _Writing(nn.Module):
    """Writes over values that are read before and after, through other names too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            y = block(x)
            kept = self.drop(y)
            first, last = y.chunk(2, dim=-1)
            doubled = y * 2
            y.add_(1)
            last.mul_(first)
            x = self.relu(y + doubled) + kept + first.sum()
        return x


class _Counting(nn.Module):
    """Counts in a buffer, which is state, and reads it."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            self.calls.add_(1)
            x = block(x) + self.calls
        return x


def _network(net: nn.Module, x: Tensor) -> tuple[Network, list[fx.Node], Batch]:
    result = repl_fx.transform(net, (x,), surrogate="identity")
    graph = result.captured
    (batch,) = Batches([x], nn.Identity())
    return Network(result, {"": graph}), [n for n in graph.graph.nodes if n.op not in ("get_attr", "output")], batch


@pytest.mark.parametrize(("make", "x"), [(_Writing, torch.randn(8, 8)), (partial(ConvNet, depth=3), images(8))])
def test_a_run_goes_on_where_another_ended(make: Callable[[], nn.Module], x: Tensor) -> None:
    network, nodes, batch = _network(make(), x)
    whole = network.values(batch, nodes)
    # Each from the one before, and all from the inputs.
    last, reached = None, 0
    for node in nodes:
        place = network.place_of([node])
        assert place is not None
        for start in filter(None, (network.reach(batch, place), last and network.reach(batch, place, last))):
            later = nodes[nodes.index(node) :]
            values = network.values(batch, later, start)
            assert all(equal_inside(values[one], whole[one]) for one in later)
            last, reached = start, reached + 1
    assert reached > len(nodes) / 3


@pytest.mark.parametrize("make", [_Counting, partial(InHalf, depth=3)])
def test_runs_of_a_graph_with_state_or_regions_begin_at_the_inputs(make: Callable[[], nn.Module]) -> None:
    network, nodes, _ = _network(make(), torch.randn(8, 8) if make is _Counting else images(8))
    assert network.place_of(nodes[-1:]) is None


def test_batches_without_room_begin_at_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours, nodes, batch), (theirs, others, _) = (_network(ConvNet(depth=3), images(8)) for _ in range(2))
    middle = [nodes[len(nodes) // 2 :], others[len(nodes) // 2 :]]
    expected = [net.values(batch, wanted) for net, wanted in zip((ours, theirs), middle, strict=True)]
    reached: list[int] = []
    reach = Network.reach

    def counted(*args: Any) -> Reached | None:
        reached.append(1)
        return reach(*args)

    monkeypatch.setattr(Network, "reach", counted)
    for room, runs in ((1 << 20, 2), (0, 2)):
        monkeypatch.setattr("repl_fx.fitting.networks._MOST_BYTES", room)
        pair = NetworkPair(ours, theirs)
        for _ in range(3):
            for number in range(2 if room else 1):
                assert equal_inside(list(pair.values(number, batch, middle, middle)), expected)
        assert len(reached) == runs * (2 if room else 1)
        reached.clear()


def test_the_captured_network_runs_once_for_a_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours, nodes, batch), (theirs, others, _) = (_network(ConvNet(depth=3), images(8)) for _ in range(2))
    expected = theirs.values(batch, others)
    runs: list[Network] = []
    values = Network.values

    def counted(network: Network, *args: Any) -> dict[fx.Node, Any]:
        runs.append(network)
        return values(network, *args)

    monkeypatch.setattr(Network, "values", counted)
    monkeypatch.setattr(Network, "reach", lambda *_: None)
    for room, each in ((1 << 20, 1), (0, 3)):
        monkeypatch.setattr("repl_fx.fitting.networks._MOST_KNOWN", room)
        pair = NetworkPair(ours, theirs)
        # The second surrogate looks at other values.
        for looked_at in (others[:5], others[3:]):
            for wanted in (looked_at[:2], looked_at[1:], looked_at[-1:]):
                _, found = pair.values(0, batch, (nodes, looked_at), (nodes[-1:], wanted))
                assert equal_inside(found, {node: expected[node] for node in wanted})
        assert runs.count(theirs) == 2 * each and runs.count(ours) == 6
        runs.clear()
