"""Pieces of graphs as graphs of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from repl_fx.graph.extracting import Extract, ToldSize, named_alike
from repl_fx.tracing.capture import capture


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().reshape(x.shape[1], x.shape[0]) * 2


def test_a_piece_computes_what_its_nodes_do_and_sizes_are_those_of_its_inputs() -> None:
    gm = capture(Net(), (torch.randn(3, 5),))
    relu, view, double = (next(n for n in gm.graph.nodes if word in n.name) for word in ("relu", "reshape", "mul"))
    read = [node for node in view.all_input_nodes if node is not relu]
    extract = Extract([relu, *read])
    assert read and all(extract.size(node) in (ToldSize(relu, 0), ToldSize(relu, 1)) for node in read)
    assert extract.size(relu) is None
    taken = extract.take(relu, "given")
    for node in (view, double):
        extract.copy(node)
    extract.graph.output(extract.value(double))
    # Sizes of the trace are no constants.
    x = torch.randn(2, 7)
    assert torch.equal(fx.GraphModule(nn.Module(), extract.graph)(x), x.reshape(7, 2) * 2)
    assert taken.target == "given" and taken.meta["val"] is relu.meta["val"]
    assert extract.made[double].meta == double.meta and extract.made[double].meta is not double.meta


def test_a_copy_may_call_another_target() -> None:
    graph = fx.Graph()
    added = graph.call_function(torch.add, (graph.placeholder("x"), 1))
    extract = Extract()
    extract.take(added.all_input_nodes[0], "x", (2,))
    extract.graph.output(extract.copy(added, torch.mul))
    module = fx.GraphModule(nn.Module(), extract.graph)
    assert module(torch.tensor(3)) == 3 and module() == 2


def _graph(names: tuple[str, str, str], scale: float = 2.0) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder(names[0])
    x.meta["val"] = names[0]
    added = graph.create_node("call_function", torch.add, (x, x), name=names[1])
    read = graph.create_node("get_attr", "gain", name=names[2])
    graph.output(graph.call_function(torch.mul, (added, read), {"out": None}) if scale == 2.0 else (added, scale))
    return graph


def test_graphs_that_do_the_same_have_the_same_code() -> None:
    one, other = (_graph(names) for names in (("x", "sum", "g"), ("add_7", "add_8", "blocks_3_gain")))
    assert str(one) != str(other)
    assert named_alike(one).python_code("self").src == named_alike(other).python_code("self").src
    assert (
        named_alike(_graph(("x", "sum", "g"), 3.0)).python_code("self").src != named_alike(one).python_code("self").src
    )


def test_notes_come_along_and_the_graph_stays() -> None:
    graph = _graph(("x", "sum", "g"))
    names = [node.name for node in graph.nodes][:3]
    named = named_alike(graph)
    assert next(iter(named.nodes)).meta["val"] == "x"
    assert [node.name for node in graph.nodes][:3] == names


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, (0, -x.shape[1] % 4))
        y = y.view(len(y), -1, 4).mean(2)
        z = F.pad(y, (0, -y.shape[1] % 7))
        return z.view(len(z), z.shape[1] // 7, 7).mean(2)


def test_sizes_that_are_rounded_twice_are_told_by_those_that_are_rounded_once() -> None:
    gm = capture(Rounded(), (torch.randn(3, 50),))
    mean, last = (n for n in gm.graph.nodes if "mean" in n.name)
    extract = Extract([mean])
    count = next(n for n in gm.graph.nodes if str(n.meta.get("val")) == str(last.meta["val"].shape[1]))
    assert extract.size(count) == ToldSize(mean, 1, 6, 7)
    extract.take(mean, "given")
    extract.graph.output(extract.value(count))
    module = fx.GraphModule(nn.Module(), extract.graph)
    assert [module(torch.empty(1, size)) for size in (1, 7, 8, 15)] == [1, 1, 2, 3]
