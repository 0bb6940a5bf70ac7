"""The nesting of nodes in modules, repeats and blocks."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings, strategies as st
from torch import fx, nn

import repl_fx
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.reporting.model_graph.graphs import GraphMaker
from repl_fx.reporting.model_graph.nesting import Nesting, StepDown, nest, nest_rewritten
from repl_fx.tracing.capture import CaptureInfo
from repl_fx.tracing.parts.part_repeats import PartRepeats
from tests.model_graphs import TOKENS, require_tree
from tests.nets import TokenNet

_PATHS = ["", "a", "a.b", "a.b.c", "a.d", "e", "e.0", "e.1", "f@1"]


def _graph(paths: list[str | None]) -> fx.GraphModule:
    """A chain of operators at these module paths; None has no path."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for path in paths:
        value = graph.call_function(torch.neg, (value,))
        if path is not None:
            value.meta["nn_module_stack"] = {path: (path, nn.Module)}
    graph.output(value)
    gm = fx.GraphModule(nn.Module(), graph)
    gm.meta["capture"] = CaptureInfo("Net", "fx.symbolic_trace", ())
    return gm


def _repeat(gm: fx.GraphModule, name: str, cuts: list[int], similar: bool = False, module: str | None = None) -> Repeat:
    """Blocks back to back, cut before each of these operators."""
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    pairs = pairwise(cuts)
    blocks = [Block(f"{name}.{k}", tuple(nodes[i:j]), (), (), (), (), (), module, {}) for k, (i, j) in enumerate(pairs)]
    return Repeat(name, tuple(blocks), similar=similar)


def _require_whole(gm: fx.GraphModule, repeats: list[Repeat], nesting: Nesting) -> None:
    """Each node has its steps, and the groups that these make are a tree."""
    assert list(nesting.steps) == [node.name for node in gm.graph.nodes]
    part = PartRepeats.of("", gm, repeats)
    costs = dict.fromkeys(nesting.steps, (0, 0))
    require_tree(GraphMaker(part, gm, nesting.steps, nesting, costs, {}, None, {}).make({}))


def test_a_node_lies_in_a_module_of_a_block_of_a_repeat() -> None:
    torch.manual_seed(0)
    gm = repl_fx.capture(TokenNet(depth=3), (TOKENS,))
    found = nest(gm, find_repeats(gm))
    repeat, block = StepDown("repeat", "blocks"), StepDown("block", "blocks.1")
    assert found.steps["blocks_1_attn_qkv"] == (repeat, block, StepDown("module", "blocks.1.attn"))
    assert found.steps["blocks_1_fc1"] == found.blocks["blocks.1"] == (repeat, block)
    assert found.steps["head"] == ()
    assert set(found.blocks) == {"blocks.0", "blocks.1", "blocks.2"}
    assert found.modules["blocks.1"] == "blocks.1"


def test_a_module_that_blocks_cut_is_in_each_of_them() -> None:
    gm = _graph(["a", "b", "b", "c"])
    nesting = nest(gm, [_repeat(gm, "r", [0, 2, 4])])
    repeat, cut = StepDown("repeat", "r"), StepDown("module", "b")
    assert nesting.steps["neg_1"] == (repeat, StepDown("block", "r.0"), cut)
    assert nesting.steps["neg_2"] == (repeat, StepDown("block", "r.1"), cut)


def test_blocks_of_the_same_nodes_are_one_group() -> None:
    gm = _graph(["a.0", "a.1"])
    exact, similar = _repeat(gm, "r", [0, 1, 2]), _repeat(gm, "s", [0, 1, 2], similar=True)
    nesting = nest(gm, [exact, similar])
    assert nesting.blocks["r.1"] == nesting.blocks["s.1"]
    assert nesting.names == {"r.0": ("r.0", "s.0"), "r.1": ("r.1", "s.1")}


def test_of_blocks_that_overlap_the_replaced_one_is_a_group() -> None:
    gm = _graph(["a", "a", "b", "b"])
    exact, similar = _repeat(gm, "r", [0, 2, 4]), _repeat(gm, "s", [1, 3], similar=True)
    assert set(nest(gm, [exact, similar]).blocks) == {"r.0", "r.1"}
    assert set(nest(gm, [exact, similar], replaced=["s.0"]).blocks) == {"s.0"}


def test_what_has_no_path_lies_with_its_readers_outside_of_repeats() -> None:
    gm = _graph(["a.0", "a.1"])
    first, second = (node for node in gm.graph.nodes if node.op == "call_function")
    with gm.graph.inserting_before(first):
        mask, own = gm.graph.call_function(torch.ones, (1,)), gm.graph.call_function(torch.ones, (1,))
    first.args, second.args = (mask, own), (mask, first)
    blocks = (Block(f"a.{k}", (n,), (), (), (), (), (), f"a.{k}", {}) for k, n in enumerate((first, second)))
    nesting = nest(gm, [Repeat("a", tuple(blocks))])
    assert nesting.steps[own.name] == nesting.blocks["a.0"]
    assert nesting.steps[mask.name] == ()


def test_modules_that_hold_one_group_alone_are_left_out() -> None:
    gm = _graph(["a.b.c", "a.b.c", "e"])
    steps = nest(gm, []).steps
    assert steps["neg"] == (StepDown("module", "a.b.c"),)


def test_steps_of_a_rewritten_graph() -> None:
    gm = _graph(["a.0", "a.1", "a.2"])
    nesting = nest(gm, [_repeat(gm, "a", [0, 1, 2, 3])])
    after = fx.Graph()
    value = after.placeholder("x")
    after.call_function(torch.neg, (value,))
    helper = after.call_function(torch.ones, (1,))
    made = after.call_function(torch.exp, (helper,))
    made.meta["replaces"] = ("a.1", "identity")
    after.output(made)
    steps = nest_rewritten(after, nesting)
    assert steps["neg"] == nesting.steps["neg"]
    assert steps["exp"] == steps["ones"] == nesting.blocks["a.1"]


@st.composite
def _nested(draw: st.DrawFn) -> tuple[fx.GraphModule, list[Repeat], set[str]]:
    gm = _graph(draw(st.lists(st.sampled_from([None, *_PATHS]), min_size=2, max_size=14)))
    count = len(gm.graph.nodes) - 2
    repeats = []
    for number in range(draw(st.integers(0, 3))):
        cuts = draw(st.lists(st.integers(0, count), min_size=2, max_size=5, unique=True).map(sorted))
        module = draw(st.sampled_from([None, *_PATHS[1:]]))
        repeats.append(_repeat(gm, f"r{number}", cuts, similar=draw(st.booleans()), module=module))
    names = [block.name for repeat in repeats for block in repeat.blocks]
    return gm, repeats, draw(st.sets(st.sampled_from(names), max_size=2)) if names else set()


@settings(max_examples=60, deadline=None)
@given(_nested())
def test_groups_are_a_tree_that_holds_each_node_once(nested: tuple[fx.GraphModule, list[Repeat], set[str]]) -> None:
    gm, repeats, replaced = nested
    _require_whole(gm, repeats, nest(gm, repeats, replaced))
