"""The state that a graph uses, and what is removed once no node uses it."""

from __future__ import annotations

import torch
from torch import fx

from repl_fx.graph.captured import erase_dead
from repl_fx.graph.state import prune_state_, used_by
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
