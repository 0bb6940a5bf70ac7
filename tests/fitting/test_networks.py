"""Networks that show values as they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.fitting.networks import Network
from repl_fx.running.batches import Batches
from tests.nets import ConvNet, images


def test_each_run_keeps_what_it_was_asked_for_and_leaves_the_model() -> None:
    net = ConvNet(depth=3).train()
    x = images(8)
    result = repl_fx.transform(net, (x,), surrogate="identity")
    graph = result.captured
    places = [node for node in graph.graph.nodes if node.op == "call_module"]
    network = Network(result, {"": graph}, [("", node) for node in places])
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
    network = Network(result, {"": graph}, [("", node) for node in places])
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
