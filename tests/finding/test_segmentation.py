"""Where the copies of a run begin, and which values pass from one to the next."""

from __future__ import annotations

import operator
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor, fx, nn

from repl_fx.finding import segmentation
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.finding.node_table import node_table
from repl_fx.finding.segmentation import Cutting, TandemRun, cut, depends
from repl_fx.tracing.capture import capture
from tests.graphs import Graph, assert_sound, residual
from tests.nets import TwoStreams


def test_dense_connections_are_no_repeat() -> None:
    graph = Graph()
    values = [graph.linear(graph.input())]
    for _ in range(6):
        total = values[0]
        for value in values[1:]:
            total = graph.call(operator.add, total, value)
        values.append(graph.linear(graph.call(torch.relu, total)))
    assert find_repeats(graph.done(values[-1])) == ()


def test_parallel_branches_are_no_repeat() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    branches = [graph.call(torch.relu, graph.linear(x)) for _ in range(4)]
    total = branches[0]
    for branch in branches[1:]:
        total = graph.call(operator.mul, total, branch)
    assert find_repeats(graph.done(total)) == ()


def test_first_copy_may_take_its_input_from_anywhere() -> None:
    graph = Graph()
    given = graph.input()
    x = graph.linear(given)
    mask = graph.call(torch.sigmoid, graph.call(torch.tanh, given))
    for _ in range(4):
        x = graph.call(operator.add, x, graph.call(operator.mul, graph.linear(x), mask))
    (repeat,) = find_repeats(graph.done(x))
    assert len(repeat) == 4
    assert repeat.blocks[0].input.name == "layer_0"
    assert_sound((repeat,))


def woven_graph(seed: int) -> fx.GraphModule:
    """Programs of a few operators that reach several values back, each run several times in a row."""
    draw = random.Random(seed)
    graph = Graph()
    values = [graph.linear(graph.input())]
    side = graph.linear(values[0])
    for _ in range(draw.randint(1, 4)):
        program = [
            (draw.randint(0, 4), draw.randint(0, 3), draw.randint(1, 3), draw.randint(1, 5))
            for _ in range(draw.randint(1, 7))
        ]
        for _ in range(draw.randint(1, 7)):
            for kind, which, near, far in program:
                y, z = values[-min(near, len(values))], values[-min(far, len(values))]
                if kind == 0 or (kind == 4 and which):
                    values.append(graph.linear(y))
                elif kind == 1:
                    values.append(graph.call((torch.relu, torch.tanh)[which % 2], y))
                elif kind == 3:
                    values.append(graph.call(operator.mul, y, side))
                else:
                    far = min(near + far, len(values)) if kind == 4 else min(far, len(values))
                    values.append(graph.call(operator.add, y, values[-far] if kind == 4 else z))
            if draw.random() < 0.1:
                values.append(graph.call(torch.sigmoid, values[-1]))
    return graph.done(values[-1])


# In 314 a value crosses the last cut that only nodes behind the last copy use.
@settings(max_examples=40)
@example(314)
@given(st.integers(0, 2**20))
def test_whatever_crosses_a_cut_is_taken_by_the_copy_behind_it(seed: int) -> None:
    for repeat in find_repeats(woven_graph(seed)):
        if repeat.similar:
            continue
        for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
            assert after.inputs == before.outputs
            assert all(any(user in after.node_set for user in value.users) for value in after.inputs)
            assert not before.node_set & after.node_set


def test_blocks_that_hand_on_two_values() -> None:
    (repeat,) = find_repeats(capture(TwoStreams(4), (torch.randn(3, 4),)))
    assert len(repeat) == 4
    for block in repeat.blocks:
        assert [v.meta["val"].shape[-1] for v in block.inputs] == [8, 6]
        assert [v.meta["val"].shape[-1] for v in block.outputs] == [8, 6]
    for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
        assert after.inputs == before.outputs
    assert [n.name for n in repeat.blocks[0].inputs] == ["stem", "coarse"]


@pytest.mark.slow
def test_phases_of_a_run_do_not_walk_the_same_nodes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stages in thirteen widths in turn: runs of all multiples of their length, each with many ways to cut it.
    graph = Graph()
    x = graph.linear(graph.input())
    for stage in range(104):
        x = graph.linear(x, width := 8 * (stage % 13 + 1))
        for _ in range(12):
            x = graph.call(operator.add, x, graph.linear(graph.call(torch.relu, graph.linear(x, width)), width))
    gm = graph.done(x)
    calls = {"pairs": 0, "searches": 0}
    depends = segmentation.depends

    class Counting(segmentation.Blamed):
        def get(self, *args: Any) -> Any:
            calls["pairs"] += 1
            return super().get(*args)

    def count_searches(*args: Any) -> bool:
        calls["searches"] += 1
        return depends(*args)

    monkeypatch.setattr(segmentation, "Blamed", Counting)
    monkeypatch.setattr(segmentation, "depends", count_searches)
    assert find_repeats(gm)
    # Without what is remembered of other phases: 95 pairs for each node, and a search for each phase that is tried.
    assert calls["pairs"] < 3 * len(gm.graph.nodes)
    assert calls["searches"] < 100


@pytest.mark.parametrize("depth", [3, 6])
def test_blocks_that_make_a_skip_value_after_the_stream_are_all_found(depth: int) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.out, self.skip = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            inner = torch.tanh(self.gate(x))
            return x + self.out(inner), self.skip(inner)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(2, 8, 1)
            self.layers = nn.ModuleList(Layer() for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            skips = []
            for layer in self.layers:
                x, skip = layer(x)
                skips.append(skip)
            return torch.cat([x, torch.stack(skips).sum(0)])

    found = find_repeats(capture(Net(), (torch.randn(2, 2, 12),)))
    assert [len(repeat) for repeat in found] == [depth]


def test_copies_begin_where_one_value_crosses() -> None:
    # stem, 3 x (linear relu linear relu add), head
    table = node_table(residual(3))
    found = cut(table, TandemRun(1, 16, 5))
    assert found == Cutting(1, 5, 3, (4,), None)
    assert found is not None and found.begin == 1
    assert found.members.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]]


def test_a_run_that_begins_within_a_copy_is_extended_to_its_beginning() -> None:
    found = cut(node_table(residual(3)), TandemRun(3, 16, 5))
    assert found == Cutting(6, 5, 2, (4,), (1, 2, 3, 4, 5))
    assert found is not None and (found.begin, found.total) == (1, 3)


def test_a_result_depends_on_its_input_along_a_path() -> None:
    table = node_table(residual(3))
    assert depends(table, 6, 4, [5])
    # By the addition, past all that lies on the branch, and by nothing from another value.
    around = np.zeros(len(table.nodes), bool)
    around[6:10] = True
    assert depends(table, 6, 4, [5], around)
    assert not depends(table, 6, 4, [0]) and not depends(table, 6, 3, [5], around)
