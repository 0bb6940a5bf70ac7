"""Each way to break the normal form is found, and blamed on the pass that did it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx.errors import BrokenGraph
from repl_fx.graph.runtime import enter_autocast, leaf_call_operator
from repl_fx.passes.check_graph import check_graph, is_device, mentions_device
from repl_fx.tracing.capture import capture

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x) * self.gain, 0.1, self.training) + torch.arange(8)


@pytest.fixture
def gm() -> fx.GraphModule:
    return capture(Model(), (torch.randn(2, 8),))


def node_of(gm: fx.GraphModule, word: str) -> fx.Node:
    found: fx.Node = next(n for n in gm.graph.nodes if word in str(n.target))
    return found


def add(gm: fx.GraphModule, op: str, target: object, *args: object) -> fx.Node:
    with gm.graph.inserting_before(next(n for n in gm.graph.nodes if n.op == "output")):
        node = gm.graph.create_node(op, target, args)  # type: ignore[arg-type]
    node.meta["val"] = None
    return node


def use_before_definition(gm: fx.GraphModule) -> None:
    node_of(gm, "dropout").append(node_of(gm, "mul"))


def call_method(gm: fx.GraphModule) -> None:
    add(gm, "call_method", "relu", node_of(gm, "mul"))


def leave_leaf_call(gm: fx.GraphModule) -> None:
    add(gm, "call_function", leaf_call_operator(), [node_of(gm, "mul")], [], 0)


def remove_parameter(gm: fx.GraphModule) -> None:
    del gm.gain


def replace_module(gm: fx.GraphModule) -> None:
    del gm.fc
    gm.fc = torch.ones(2)


def read_text(gm: fx.GraphModule) -> None:
    gm.name = "text"  # type: ignore[assignment]
    add(gm, "get_attr", "name")


def change_note(gm: fx.GraphModule) -> None:
    node_of(gm, "mul").meta["block"] = 3


def drop_value(gm: fx.GraphModule) -> None:
    del node_of(gm, "mul").meta["val"]


def leave_dead_node(gm: fx.GraphModule) -> None:
    add(gm, "call_function", torch.relu, node_of(gm, "mul"))


def bake_device(gm: fx.GraphModule) -> None:
    add(gm, "call_function", torch.ops.aten.arange.default, 8).kwargs = {"device": torch.device("cpu")}


def bake_device_deep(gm: fx.GraphModule) -> None:
    add(gm, "call_function", torch.ops.aten.arange.default, 8, [torch.device("cpu")])


def change_shape(gm: fx.GraphModule) -> None:
    gm.gain = nn.Parameter(torch.ones(4))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (use_before_definition, "used before it has been defined"),
        (call_method, "node relu: a call_method node has no place"),
        (leave_leaf_call, "a leaf call was not lifted"),
        (remove_parameter, "gain"),
        (replace_module, "fc"),
        (read_text, "node name: name is no tensor, no mode flag and no module"),
        (drop_value, "node mul_tensor: it has no fake value"),
        (leave_dead_node, "node relu: nothing uses it and it has no effect"),
        (bake_device, "node arange_.*: device cpu is baked in"),
        (bake_device_deep, "node arange_.*: device cpu is baked in"),
        (change_note, "node mul_tensor: its note block is of the class int, not str"),
        (change_shape, r"node gain: its fake value has shape \(8,\), gain has \(4,\)"),
    ],
)
def test_a_breaking_pass_is_named(gm: fx.GraphModule, breaks: Callable[[fx.GraphModule], None], message: str) -> None:
    check_graph(gm, "before")
    broken = copy.deepcopy(gm)
    breaks(broken)
    with pytest.raises(BrokenGraph, match=f"^breaking_pass: .*{message}"):
        check_graph(broken, "breaking_pass")
    # Each breaks a copy of its own.
    check_graph(gm, "after")


@pytest.mark.parametrize(
    ("value", "device", "same"),
    [
        (CPU, CPU, True),
        (CPU, CUDA, False),
        (CUDA, torch.device("cuda", 1), True),
        (torch.device("cuda", 1), CUDA, True),
        (torch.device("cuda", 0), torch.device("cuda", 1), False),
        ("cpu", CPU, False),
    ],
)
def test_a_device_without_an_index_is_any_of_its_type(value: Any, device: torch.device, same: bool) -> None:
    assert is_device(value, device) is same


def test_a_device_is_found_at_any_depth() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert mentions_device(graph.call_function(torch.zeros, (2,), {"device": CPU}), CPU)
    assert mentions_device(graph.call_function(print, ([x, {"to": [CPU]}],)), CPU)
    assert not mentions_device(graph.call_function(torch.zeros, (2,), {"device": CPU}), CUDA)
    assert not mentions_device(graph.call_function(torch.relu, (x,)), CPU)


def test_autocast_names_its_device_by_a_word() -> None:
    node = fx.Graph().call_function(enter_autocast, ("cpu", torch.bfloat16, True, None))
    assert mentions_device(node, CPU) and not mentions_device(node, CUDA)
