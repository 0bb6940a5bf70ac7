"""The driver runs passes, writes their code, and names the pass that broke the graph."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import BrokenGraph
from repl_fx.graph.captured import copy_graph
from repl_fx.passes.driver import Result, run_passes
from repl_fx.plan import Refusal
from repl_fx.tracing.capture import capture


class Net(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


def _edit(gm: fx.GraphModule, old: str, new: str) -> Result:
    operators = {name: getattr(torch.ops.aten, name).default for name in (old, new)}
    nodes = gm.graph.find_nodes(op="call_function", target=operators[old])
    for node in nodes:
        node.target = operators[new]
    refusals = () if nodes else (Refusal("net", "net", f"it has no {old}"),)
    return Result(gm, tuple(node.name for node in nodes), refusals=refusals)


def edit_(gm: fx.GraphModule, old: str = "relu", new: str = "neg") -> Result:
    return _edit(gm, old, new)


def edit(gm: fx.GraphModule) -> Result:
    return _edit(copy_graph(gm, compiled=False), "relu", "neg")


def edit_in_secret(gm: fx.GraphModule) -> Result:
    return _edit(gm, "relu", "neg")


def break_(gm: fx.GraphModule) -> Result:
    next(node for node in gm.graph.nodes if node.op == "call_function").meta.clear()
    return Result(gm, ("check_shape",))


@pytest.fixture
def gm() -> fx.GraphModule:
    return capture(Net(), (torch.ones(2, 3),))


def test_passes_run_in_order_and_nobody_recompiles(gm: fx.GraphModule) -> None:
    x = torch.ones(2, 3)
    run = run_passes(gm, edit_, partial(edit_, old="neg", new="abs"), partial(edit_, old="relu", new="exp"))
    assert run.graph_module is gm
    assert torch.equal(gm(-x), x)
    assert [result.modified for result in run.results] == [True, True, False]
    assert run.results[0].changed == ("relu_default",)
    assert [r.reason for r in run.results[-1].refusals] == ["it has no relu"]


def test_a_pass_that_copies_leaves_the_graph_as_it_was(gm: fx.GraphModule) -> None:
    x = torch.ones(2, 3)
    assert torch.equal(run_passes(gm, edit).graph_module(x), -x)
    gm.recompile()
    assert torch.equal(gm(x), x)


def test_a_pass_that_changes_what_it_was_to_copy_is_named(gm: fx.GraphModule) -> None:
    with pytest.raises(BrokenGraph, match=r"^edit_in_secret: it changed the graph that it was given"):
        run_passes(gm, edit_in_secret)


def test_a_pass_that_breaks_the_graph_is_named(gm: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    run_passes(copy_graph(gm), edit_, break_)
    monkeypatch.setenv("REPL_FX_CHECK", "1")
    with pytest.raises(BrokenGraph, match=r"^break_: node check_shape: it has no fake value"):
        run_passes(gm, edit_, break_, edit_)
