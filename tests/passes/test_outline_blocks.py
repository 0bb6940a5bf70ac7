"""Blocks become submodules of the graph, and nothing else changes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.passes.driver import run_passes
from repl_fx.passes.outline_blocks import outline_blocks
from tests.nets import ConvNet, LevelledBlock, RawNet, TokenNet, training_step

TOKENS, PICTURES = torch.randn(2, 6, 16), torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "x", "surrogate"),
    [
        (TokenNet(depth=5, dropout=0.1), TOKENS, "bottleneck"),
        (TokenNet(depth=5, dropout=0.1), TOKENS, "reuse"),
        (TokenNet(depth=5, dropout=0.1), TOKENS, "blend"),
        (ConvNet(), PICTURES, "slim"),
        (ConvNet(), PICTURES, "coarse"),
    ],
)
def test_a_rewritten_graph_computes_the_same_block_by_block(model: nn.Module, x: Tensor, surrogate: str) -> None:
    before = repl_fx.transform(model, (x,), surrogate=surrogate).graph_module
    run = run_passes(before, outline_blocks)
    after, result = run.graph_module, run.results[0]
    assert sorted(result.changed) == [f"blocks.{i}" for i in range(5)]
    assert not result.refusals
    called = {str(node.target) for node in after.graph.nodes if node.op == "call_module"}
    assert called >= {f"blocks.{i}" for i in range(5)}
    assert set(after.state_dict()) == set(before.state_dict())
    for training in (True, False):
        (out, grads), (expected, theirs) = training_step(after, x, training), training_step(before, x, training)
        assert torch.equal(out, expected)
        assert grads.keys() == theirs.keys()
        assert all(torch.equal(grads[name], theirs[name]) for name in theirs)
    # The batch is that of the blocks' own inputs.
    assert len(after(torch.cat([x, x]))) == 4
    seen: list[str] = []
    for path in result.changed:
        after.get_submodule(path).register_forward_hook(lambda *_, path=path: seen.append(path))
    expected = after(x)
    assert seen == [f"blocks.{i}" for i in range(5)]
    for other in (copy.deepcopy(after), repl_fx.fold(after)):
        assert torch.allclose(other(x), expected, atol=1e-6)


def test_pickles_keep_layers_that_lie_elsewhere() -> None:
    before = repl_fx.transform(ConvNet(), (PICTURES,), surrogate="slim").graph_module
    after = run_passes(before, outline_blocks).graph_module.train()
    loaded = pickle.loads(pickle.dumps(after))
    assert torch.equal(loaded(PICTURES), after(PICTURES))
    # One object: the statistics that a call moves are those of the state.
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in after.state_dict().items())


def test_a_captured_graph_is_outlined_by_its_repeats() -> None:
    gm = repl_fx.capture(TokenNet(depth=3, dropout=0.1), (TOKENS,))
    run = run_passes(gm, partial(outline_blocks, repeats=repl_fx.find_repeats(gm)))
    assert run.results[0].changed == ("blocks.0", "blocks.1", "blocks.2")
    assert torch.equal(training_step(run.graph_module, TOKENS, True)[0], training_step(gm, TOKENS, True)[0])


@pytest.mark.slow
def test_blocks_of_one_kind_are_compiled_once() -> None:
    gm = repl_fx.capture(TokenNet(depth=4, dropout=0.1), (TOKENS,))
    outlined = outline_blocks(gm, repl_fx.find_repeats(gm))
    made: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    after: Any = outlined.graph_module.eval()
    expected = gm.eval()(TOKENS)
    torch.compiler.reset()
    for path in outlined.changed:
        after.get_submodule(path).compile(backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(after(TOKENS), expected)
    assert len(made) == 1
    torch.compiler.reset()


def test_a_block_that_is_no_module_has_a_path_of_its_own() -> None:
    gm = repl_fx.capture(RawNet(), (x := torch.randn(4, 8),))
    repeats = repl_fx.find_repeats(gm)
    run = run_passes(gm, partial(outline_blocks, repeats=repeats))
    assert run.results[0].changed == tuple(block.name for block in repeats[0].blocks)
    assert torch.equal(run.graph_module(x), gm(x))
    assert set(run.graph_module.state_dict()) == set(gm.state_dict())


def test_a_draw_between_the_nodes_of_a_block_is_refused() -> None:
    gm = repl_fx.capture(TokenNet(depth=3), (TOKENS,))
    repeats = repl_fx.find_repeats(gm)
    middle = repeats[0].blocks[1].nodes[3]
    with gm.graph.inserting_after(middle):
        drawn: Any = gm.graph.call_function(F.dropout, (repeats[0].blocks[1].input, 0.5, True))
        drawn.meta["val"] = repeats[0].blocks[1].input.meta["val"]
        gm.graph.inserting_after(drawn)
    output = next(node for node in gm.graph.nodes if node.op == "output")
    output.args = fx.node.map_arg(output.args, lambda node: node)
    drawn.target = torch.ops.aten.dropout.default
    with gm.graph.inserting_before(output):
        kept = gm.graph.call_function(torch.ops.aten.sum.default, (drawn,))
        kept.meta["val"] = drawn.meta["val"]
    output.args = ((output.args[0], kept),)
    result = outline_blocks(gm, repeats)
    assert [refusal.block for refusal in result.refusals] == ["blocks.1"]
    assert "has an effect, lies between its nodes" in result.refusals[0].reason


class Changing(nn.Module):
    """A residual block on normalised hidden units, with something before it that an input does not say."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.register_buffer("steps", torch.tensor(1.0))

    def branch(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(F.relu(self.norm(self.hidden(x))), 0.5, self.training))  # type: ignore[no-any-return]


class Skipped(Changing):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(1).item() > 0.2:
            return x
        return x + self.branch(x)


class Noisy(Changing):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training)
        return x + self.branch(x) * torch.rand(8)


class Counting(Changing):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.steps
        self.steps.add_(1)
        return x + self.branch(x)


@pytest.mark.parametrize("kind", [Skipped, Noisy, Counting])
def test_draws_and_writes_of_a_block_are_where_they_were(kind: type[Changing]) -> None:
    x, model = torch.randn(6, 8), nn.Sequential(*(kind() for _ in range(4)), nn.Linear(8, 8))
    gm = repl_fx.capture(model, (x,), copy=True)
    run = run_passes(gm, partial(outline_blocks, repeats=repl_fx.find_repeats(gm)))
    assert run.results[0].changed == ("0", "1", "2", "3")
    outlined = copy.deepcopy(run.graph_module)
    for training in (True, True, False):
        (out, grads), (expected, theirs) = training_step(outlined, x, training), training_step(model, x, training)
        assert torch.equal(out, expected)
        assert grads.keys() == theirs.keys()
        assert all(torch.equal(grads[name], theirs[name]) for name in theirs)
    state = outlined.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_part_of_a_layer_that_is_skipped_is_refused() -> None:
    gm = repl_fx.capture(nn.Sequential(*(Skipped() for _ in range(4))), (torch.randn(6, 8),))
    repeat = repl_fx.find_repeats(gm)[0]
    cut = replace(repeat.blocks[1], nodes=repeat.blocks[1].nodes[1:])
    result = outline_blocks(gm, [replace(repeat, blocks=(repeat.blocks[0], cut))])
    assert result.changed == ("0",)
    assert [str(r.reason) for r in result.refusals] == ["a part of it is skipped together with what is outside of it"]


def test_a_block_of_which_a_part_is_without_gradients_is_refused() -> None:
    graph = repl_fx.transform(nn.Sequential(*(LevelledBlock(16) for _ in range(3))), (TOKENS,), surrogate="bottleneck")
    result = run_passes(graph.graph_module, outline_blocks).results[0]
    assert not result.changed
    assert {refusal.reason for refusal in result.refusals} == {
        "a part of it is computed without gradients, or in a precision of its own"
    }
