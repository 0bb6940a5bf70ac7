"""A copy of a graph hands values of its nodes to functions."""

from __future__ import annotations

import torch
from torch import Tensor

import repl_fx
from repl_fx.graph.recording import watched, watching_forward
from repl_fx.running.meanwhile import forward_replaced
from tests.nets import MlpNet


def test_values_are_handed_out_and_nothing_changes() -> None:
    x = torch.randn(2, 4, 16)
    gm = repl_fx.capture(MlpNet(), (x,))
    before = str(gm.graph)
    first, *_, last = (node for node in gm.graph.nodes if node.op != "output")
    given: list[Tensor] = []
    results: list[Tensor] = []
    copied = watched(gm, {first: given.append, last: results.append})
    made = copied(x)
    assert str(gm.graph) == before
    assert len(given) == len(results) == 1
    assert torch.equal(given[0], x)
    assert torch.equal(results[0], made) and torch.equal(made, gm(x))
    assert {id(p) for p in copied.parameters()} == {id(p) for p in gm.parameters()}


def test_runs_of_a_graph_itself_are_watched_and_its_code_stays() -> None:
    x = torch.randn(2, 4, 16, requires_grad=True)
    gm = repl_fx.capture(MlpNet(), (x.detach(),))
    code, (first, *_, last) = gm.code, (node for node in gm.graph.nodes if node.op != "output")
    seen: dict[str, Tensor] = {}
    calls: list[int] = []
    handle = gm.register_forward_hook(lambda module, given, made: calls.append(1))
    notes = {first: lambda value: seen.update(first=value), last: lambda value: seen.update(last=value)}
    with forward_replaced(gm, watching_forward(gm, notes)):
        made = gm(x)
    # Its own hooks run, and gradients go where they went.
    assert calls == [1] and seen["first"] is x and torch.equal(seen["last"], made)
    torch.autograd.backward(seen["last"].sum())
    assert x.grad is not None and all(parameter.grad is not None for parameter in gm.parameters())
    handle.remove()
    seen.clear()
    assert torch.equal(gm(x), made) and not seen and gm.code == code
