"""Networks that show values as they run."""

from __future__ import annotations

from typing import Any

import torch

from repl_fx.fitting.networks import Network
from repl_fx.running.batches import Batches
from tests.captures import transformed
from tests.nets import ConvNet, images


def test_each_run_keeps_what_it_was_asked_for_and_leaves_the_model() -> None:
    net = ConvNet(depth=3).train()
    x = images(8)
    result = transformed(net, (x,), surrogate="identity")
    graph = result.captured
    places = [node for node in graph.graph.nodes if node.op == "call_module"]
    network = Network(result, {"": graph}, [("", node) for node in places])
    stem = next(node for node in places if node.target == "stem")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    (batch,) = Batches([x], paired=False, device=torch.device("cpu"))
    values: dict[Any, Any] = network.values(batch, [stem])
    assert values.keys() == {stem}
    torch.testing.assert_close(values[stem], net.stem(x))
    assert network.values(batch, places).keys() == set(places)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and not any(
        node.op == "call_module" and "watch" in str(node.target) for node in graph.graph.nodes
    )
