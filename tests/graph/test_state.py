"""The state that a graph uses, and what is removed once no node uses it."""

from __future__ import annotations

import torch
from torch import fx, nn

from repl_fx.graph.captured import erase_dead
from repl_fx.graph.state import SOURCE_STATE, prune_state_, source_state, state_shapes, used_by
from tests.graph.nets import call


def test_used_state_counts_what_switches_call(gm: fx.GraphModule) -> None:
    used = used_by(gm)
    assert {"fc.weight", "extra.bias", "norm.running_mean", "hidden"} <= used.state
    assert "unused" not in used.state
    assert {"fc", "extra", "norm", "lstm", "mode_switch"} == used.modules


def test_pruning_takes_what_is_no_longer_used(gm: fx.GraphModule) -> None:
    before = used_by(gm)
    names = set(gm.state_dict())
    prune_state_(gm, before)
    assert set(gm.state_dict()) == names
    fc, switch = call(gm, "fc"), call(gm, "mode_switch")
    switch.replace_all_uses_with(next(n for n in switch.all_input_nodes if n.op != "get_attr"))
    fc.replace_all_uses_with(fc.all_input_nodes[0])
    erase_dead(gm.graph, [switch, fc])
    gm.recompile()
    prune_state_(gm, before)
    assert names - set(gm.state_dict()) == {"extra.bias", "extra.weight", "fc.bias", "fc.weight"}
    assert [name for name, _ in gm.named_children()] == ["norm", "lstm"]
    left = set(gm.state_dict())
    assert "unused" in left
    prune_state_(gm, used_by(gm))
    assert set(gm.state_dict()) == left
    assert gm(torch.randn(3, 8)).shape == (3, 8)


def test_a_module_may_keep_what_the_source_had_in_its_place(gm: fx.GraphModule) -> None:
    assert source_state(gm) is None and source_state(gm.get_submodule("fc")) is None
    shapes = state_shapes(gm)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in gm.state_dict().items()} and shapes
    for module in (gm, nn.Identity()):
        vars(module)["meta"] = {SOURCE_STATE: shapes}
        assert source_state(module) == shapes
