"""The nesting of nodes in modules, repeats and blocks."""

from __future__ import annotations

import torch

from repl_fx.passes.find_repeats import find_repeats
from repl_fx.report.model_graph.nesting import Step, nest
from tests.captures import captured_graph
from tests.model_graphs import TOKENS
from tests.nets import TokenNet


def test_a_node_lies_in_a_module_of_a_block_of_a_repeat() -> None:
    torch.manual_seed(0)
    gm = captured_graph(TokenNet(depth=3), (TOKENS,))
    found = nest(gm, find_repeats(gm))
    repeat, block = Step("repeat", "blocks"), Step("block", "blocks.1")
    assert found.steps["blocks_1_attn_qkv"] == (repeat, block, Step("module", "blocks.1.attn"))
    assert found.steps["blocks_1_fc1"] == found.blocks["blocks.1"] == (repeat, block)
    assert found.steps["head"] == ()
    assert set(found.blocks) == {"blocks.0", "blocks.1", "blocks.2"}
