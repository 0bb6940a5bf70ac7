"""Constants follow the module when it moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.graph.runtime import enter_autocast
from repl_fx.passes.follow_device import ANCHOR, follow_device_
from repl_fx.tracing.capture import capture, check_capture


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) + torch.arange(8, device=x.device) + torch.zeros(8) + torch.tensor([1.0] * 8)
        with torch.autocast(x.device.type, torch.bfloat16):
            product: Tensor = y @ self.fc.weight
        return product


def literals(graph: fx.Graph) -> list[torch.device]:
    found: list[torch.device] = []
    for node in graph.nodes:
        fx.node.map_aggregate(
            (node.args, node.kwargs), lambda v: found.append(v) if isinstance(v, torch.device) else None
        )
    return found


def test_no_device_is_left_in_the_graph() -> None:
    model, x = Model(), torch.randn(3, 8)
    gm = capture(model, (x,))
    assert literals(gm.graph) == []
    assert next(iter(gm.graph.nodes)).op == "placeholder"
    assert check_capture(model, gm, (x,))
    # The anchor is no part of the saved state.
    assert ANCHOR in dict(gm.named_buffers()) and ANCHOR not in gm.state_dict()


def test_moves_to_another_device() -> None:
    class Plain(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + torch.arange(8, device=x.device) + torch.zeros(8) + torch.tensor([1.0] * 8)  # type: ignore[no-any-return]

    gm = copy.deepcopy(capture(Plain(), (torch.randn(3, 8),)))
    assert gm.to("meta")(torch.empty(3, 8, device="meta")).device.type == "meta"


@pytest.mark.gpu
def test_moves_to_the_gpu_and_computes_the_same() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    gm = copy.deepcopy(capture(model, (x,))).cuda()
    torch.testing.assert_close(gm(x.cuda()).cpu(), model(x), rtol=0.0, atol=1e-5)


def test_the_device_type_of_autocast_follows_and_other_words_stay() -> None:
    graph = fx.Graph()
    region = graph.call_function(enter_autocast, ("cpu", torch.bfloat16, True, True))
    spoken = graph.call_function(print, ("cpu",))
    graph.output((region, spoken))
    assert follow_device_(fx.GraphModule(nn.Module(), graph), torch.device("cpu")).changed == ("enter_autocast",)
    kind = region.args[0]
    assert isinstance(kind, fx.Node) and kind.args == (kind.all_input_nodes[0], "type")
    assert spoken.args == ("cpu",)


def test_counts_and_leaves_other_devices_alone() -> None:
    graph = fx.Graph()
    first = graph.call_function(torch.zeros, (2,), {"device": torch.device("cpu")})
    second = graph.call_function(torch.ones, (2,), {"device": torch.device("cuda", 1)})
    graph.output((first, second))
    gm = fx.GraphModule(nn.Module(), graph)
    result = follow_device_(gm, torch.device("cpu"))
    assert result.modified and result.changed == ("zeros",)
    assert isinstance(first.kwargs["device"], fx.Node) and literals(graph) == [torch.device("cuda", 1)]
    assert not follow_device_(gm, torch.device("cpu")).modified
    assert not follow_device_(gm, torch.device("cuda", 0)).modified


def test_a_graph_without_constants_gets_no_anchor() -> None:
    gm = capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(3, 8),))
    assert not hasattr(gm, ANCHOR)
