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
    assert prune_state_(gm, before) == ()
    fc, switch = call(gm, "fc"), call(gm, "mode_switch")
    switch.replace_all_uses_with(next(n for n in switch.all_input_nodes if n.op != "get_attr"))
    fc.replace_all_uses_with(fc.all_input_nodes[0])
    erase_dead(gm.graph, [switch, fc])
    gm.recompile()
    assert prune_state_(gm, before) == ("extra.bias", "extra.weight", "fc.bias", "fc.weight")
    assert [name for name, _ in gm.named_children()] == ["norm", "lstm"]
    assert "unused" in gm.state_dict()
    assert prune_state_(gm, used_by(gm)) == ()
    assert gm(torch.randn(3, 8)).shape == (3, 8)
