"""The repeats of a graph: found where they are, with their boundaries, and nowhere else."""

from __future__ import annotations

import operator
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from torch import Tensor, fx, nn

from repl_fx.analysis import segmentation
from repl_fx.analysis.blocks import Repeat
from repl_fx.analysis.node_table import node_table
from repl_fx.graph.captured import CapturedModule
from repl_fx.passes.find_repeats import _candidate_shifts, _choose, _Chosen, find_repeats, match_at_shift
from repl_fx.pipeline import transform
from repl_fx.sources import load_source
from repl_fx.tracing.capture import capture, check_capture
from tests.nets import TwoStreams

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Graph:
    """Builds a graph in normal form node by node, without a trace."""

    def __init__(self) -> None:
        self.graph, self.root, self.layers = fx.Graph(), nn.Module(), 0

    def input(self, width: int = 8) -> fx.Node:
        return self._put(self.graph.placeholder("x"), (2, width))

    def linear(self, x: fx.Node, width: int = 8, reuse: str | None = None) -> fx.Node:
        name = reuse or f"layer_{self.layers}"
        if reuse is None:
            self.root.add_module(name, nn.Linear(x.meta["val"].shape[-1], width, device="meta"))
            self.layers += 1
        return self._put(self.graph.call_module(name, (x,)), (2, width))

    def call(self, function: Callable[..., object], *args: fx.Node) -> fx.Node:
        return self._put(self.graph.call_function(function, args), tuple(args[0].meta["val"].shape))

    def done(self, result: fx.Node) -> fx.GraphModule:
        self.graph.output(result)
        return CapturedModule(self.root, self.graph)

    def _put(self, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        node.meta["val"] = torch.empty(*shape, device="meta")
        return node


def residual(depth: int, inner: int = 2, width: int = 8) -> fx.GraphModule:
    """A stem, `depth` residual blocks of `inner` linear layers with ReLU each, a head."""
    graph = Graph()
    x = graph.linear(graph.input(), width)
    for _ in range(depth):
        y = x
        for _ in range(inner):
            y = graph.call(torch.relu, graph.linear(y, width))
        x = graph.call(operator.add, x, y)
    return graph.done(graph.linear(x, 3))


def positions(chosen: Sequence[_Chosen]) -> list[tuple[list[list[int]], object]]:
    return [(found.cutting.members.tolist(), positions(found.children)) for found in chosen]


def shape_of(repeats: tuple[Repeat, ...]) -> list[tuple[int, int]]:
    return [(len(repeat), len(repeat.blocks[0].nodes)) for repeat in repeats]


def outline(gm: fx.GraphModule) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    return [
        (r.name, [(b.name, b.input.name, b.output.name, " ".join(n.name for n in b.nodes)) for b in r.blocks])
        for r in find_repeats(gm)
    ]


def assert_sound(repeats: tuple[Repeat, ...]) -> None:
    """What holds for every repeat: copies alike, chained, disjoint, and nothing else leaks between them."""
    seen: set[fx.Node] = set()
    for repeat in repeats:
        assert len(repeat) >= 2
        for block in repeat.blocks:
            assert not seen & block.node_set
            seen |= block.node_set
            assert block.input not in block.node_set
            assert block.output in block.node_set
            assert [n.target if n.op == "call_function" else n.op for n in block.nodes] == [
                n.target if n.op == "call_function" else n.op for n in repeat.blocks[0].nodes
            ]
            assert len(block.parameters) == len(repeat.blocks[0].parameters)
        for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
            assert after.input is before.output
            assert after.side_inputs == repeat.blocks[1].side_inputs


# --- by structure alone ---------------------------------------------------------------------------------------------


def test_two_blocks_of_a_residual_network() -> None:
    (repeat,) = find_repeats(residual(2))
    assert shape_of((repeat,)) == [(2, 5)]
    assert [n.name for n in repeat.blocks[0].nodes] == ["layer_1", "relu", "layer_2", "relu_1", "add"]
    assert repeat.blocks[0].input.name == "layer_0"
    assert repeat.blocks[0].parameters == ("layer_1.weight", "layer_1.bias", "layer_2.weight", "layer_2.bias")
    assert repeat.size == 4 * 72 and not repeat.shared
    assert shape_of(repeat.children) == [(2, 2)]


def test_one_block_is_no_repeat() -> None:
    # What repeats is the pair of layers inside it.
    assert shape_of(find_repeats(residual(1))) == [(2, 2)]
    assert find_repeats(residual(1, inner=1)) == ()


def test_blocks_that_differ_in_width_are_not_merged() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    for width in (8, 8, 8, 16, 16):
        if x.meta["val"].shape[-1] != width:
            x = graph.linear(x, width)
        y = graph.call(torch.relu, graph.linear(x, width))
        x = graph.call(operator.add, x, y)
    *repeats, similar = find_repeats(graph.done(x))
    assert shape_of(tuple(repeats)) == [(3, 3), (2, 3)]
    assert_sound(tuple(repeats))
    # Up to the width they are alike.
    assert similar.similar and shape_of((similar,)) == [(5, 3)]


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


def test_activations_without_parameters_are_no_repeat() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    for _ in range(6):
        x = graph.call(torch.relu, x)
    assert find_repeats(graph.done(x)) == ()


def test_shared_blocks_are_shared() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    for number in range(4):
        y = graph.call(torch.relu, graph.linear(x, reuse=None if number == 0 else "layer_1"))
        x = graph.call(operator.add, x, y)
    (repeat,) = find_repeats(graph.done(x))
    assert repeat.shared and len(repeat) == 4 and repeat.size == 72


def test_tied_tensors_of_several_modules_are_shared() -> None:
    gm = residual(3, inner=1)
    for name in ("layer_2", "layer_3"):
        for part in ("weight", "bias"):
            gm.get_submodule(name).register_parameter(part, gm.get_parameter(f"layer_1.{part}"))
    (repeat,) = find_repeats(gm)
    assert repeat.shared
    gm.get_submodule("layer_3").register_parameter("bias", nn.Parameter(torch.empty(8, device="meta")))
    assert not find_repeats(gm)[0].shared


def test_alternating_blocks_repeat_in_pairs() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    for number in range(8):
        y = graph.call(torch.relu if number % 2 else torch.tanh, graph.linear(x))
        x = graph.call(operator.add, x, y)
    (repeat,) = find_repeats(graph.done(x))
    assert shape_of((repeat,)) == [(4, 6)]
    assert_sound((repeat,))


def test_side_input_is_shared_by_all_blocks() -> None:
    graph = Graph()
    given = graph.input()
    mask = graph.call(torch.sigmoid, given)
    x = graph.linear(given)
    for _ in range(4):
        y = graph.call(operator.mul, graph.linear(x), mask)
        x = graph.call(operator.add, x, y)
    (repeat,) = find_repeats(graph.done(x))
    assert shape_of((repeat,)) == [(4, 3)]
    assert all(block.side_inputs == (mask,) for block in repeat.blocks)


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


def test_value_used_after_the_repeat_is_an_output_of_its_block() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    inner = []
    for _ in range(3):
        y = graph.call(torch.relu, graph.linear(x))
        inner.append(y)
        x = graph.call(operator.add, x, y)
    (repeat,) = find_repeats(graph.done(graph.call(operator.mul, x, inner[1])))
    assert [len(block.side_outputs) for block in repeat.blocks] == [0, 1, 0]
    assert repeat.blocks[1].side_outputs == (inner[1],)


def test_a_second_search_finds_the_same() -> None:
    gm = residual(5)
    code = gm.code
    assert outline(gm) == outline(gm)
    assert gm.code == code


@settings(max_examples=40)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
def test_depth_and_boundaries_are_those_built(depth: int, inner: int, lead: int, tail: int) -> None:
    graph = Graph()
    x = graph.linear(graph.input(), 16)
    for _ in range(lead):
        x = graph.call(torch.tanh, x)
    x = first = graph.linear(x)
    ends = []
    for _ in range(depth):
        y = x
        for _ in range(inner):
            y = graph.call(torch.relu, graph.linear(y))
        x = graph.call(operator.add, x, y)
        ends.append(x)
    for _ in range(tail):
        x = graph.call(torch.tanh, x)
    (repeat,) = find_repeats(graph.done(graph.linear(x, 3)))
    assert [block.output for block in repeat.blocks] == ends
    assert repeat.blocks[0].input is first
    assert_sound((repeat,))


def random_graph(seed: int, kinds: int, length: int) -> fx.GraphModule:
    """A chain of random operators that repeats itself most of the time; some add a value from a block before."""
    draw = random.Random(seed)
    graph = Graph()
    values = [graph.linear(graph.input())]
    block = [draw.randrange(kinds) for _ in range(draw.randint(2, max(2, length // 2)))]
    for position in range(length):
        kind = block[position % len(block)] if draw.random() < 0.97 else draw.randrange(kinds)
        if kind == 0:
            values.append(graph.linear(values[-1]))
        elif kind == 1:
            values.append(graph.call(operator.add, values[-1], values[max(0, len(values) - 1 - len(block))]))
        else:
            values.append(graph.call((torch.relu, torch.tanh, torch.sigmoid, torch.exp)[kind - 2], values[-1]))
    return graph.done(values[-1])


@settings(max_examples=60)
@given(st.integers(0, 2**20), st.integers(2, 6), st.integers(8, 160))
def test_candidate_shifts_find_what_all_shifts_find(seed: int, kinds: int, length: int) -> None:
    table = node_table(random_graph(seed, kinds, length))
    every = _choose(table, range(1, len(table.nodes)))
    candidates = _choose(table, _candidate_shifts(table))
    assert positions(candidates) == positions(every)


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


def test_matches_need_equal_labels_and_equal_wiring() -> None:
    table = node_table(residual(3))
    # stem, 3 x (linear relu linear relu add), head; the last node of the last block has no counterpart.
    assert match_at_shift(table, 5).tolist() == [False] + [True] * 10 + [False]
    assert not match_at_shift(table, 4).any()


# --- several streamed values, dropout here and there, repeats inside repeats ------------------------------------------


def test_blocks_that_hand_on_two_values() -> None:
    (repeat,) = find_repeats(capture(TwoStreams(4), (torch.randn(3, 4),)))
    assert len(repeat) == 4
    for block in repeat.blocks:
        assert [v.meta["val"].shape[-1] for v in block.inputs] == [8, 6]
        assert [v.meta["val"].shape[-1] for v in block.outputs] == [8, 6]
    for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
        assert after.inputs == before.outputs
    assert [n.name for n in repeat.blocks[0].inputs] == ["stem", "coarse"]


class SometimesDropped(nn.Module):
    """Residual layers with dropout that the first lacks, as where a rate grows from 0 with depth."""

    def __init__(self, depth: int, *, behind: bool) -> None:
        super().__init__()
        self.behind = behind
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.drops = nn.ModuleList(nn.Dropout(0.1 * i) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for number, (layer, drop) in enumerate(zip(self.layers, self.drops, strict=True)):
            if self.behind:
                x = x + F.relu(layer(x))
                x = drop(x) if number else x
            else:
                x = x + F.relu(layer(drop(x) if number else x))
        return x


@pytest.mark.parametrize("behind", [True, False])
def test_dropout_that_one_block_lacks_makes_no_difference(behind: bool) -> None:
    gm = capture(SometimesDropped(4, behind=behind), (torch.randn(3, 8),))
    (repeat,) = find_repeats(gm)
    assert [len(block.nodes) for block in repeat.blocks] == [3, 4, 4, 4]
    for number, block in enumerate(repeat.blocks[1:], start=1):
        assert block.nodes[-1].target == f"drops.{number}"
        assert block.input is repeat.blocks[number - 1].output
        assert block.side_outputs == ()
    assert repeat.blocks[-1].output.users.keys() == {gm.graph.output_node()}


def two_stages(depth: int, stages: int = 2) -> fx.GraphModule:
    """Stages of `depth` residual layers each, with a layer between them."""
    graph = Graph()
    x = graph.linear(graph.input())
    for _ in range(stages):
        for _ in range(depth):
            x = graph.call(operator.add, x, graph.call(torch.relu, graph.linear(x)))
        x = graph.call(torch.tanh, graph.linear(x))
    return graph.done(x)


def test_two_stages_of_many_blocks_are_two_repeats_of_blocks() -> None:
    assert shape_of(find_repeats(two_stages(6))) == [(6, 3), (6, 3)]


def test_many_stages_of_two_blocks_are_a_repeat_of_stages() -> None:
    (repeat,) = find_repeats(two_stages(2, stages=6))
    assert shape_of((repeat,)) == [(6, 8)]
    assert shape_of(repeat.children) == [(2, 3)]


def test_repeats_inside_repeats_inside_repeats() -> None:
    graph = Graph()
    x = graph.linear(graph.input())
    for _ in range(5):
        for _ in range(2):
            y = x
            for _ in range(2):
                y = graph.call(torch.relu, graph.linear(y))
            x = graph.call(operator.add, x, y)
        x = graph.call(torch.tanh, graph.linear(x))
    (repeat,) = find_repeats(graph.done(x))
    assert shape_of((repeat,)) == [(5, 12)]
    assert shape_of(repeat.children) == [(2, 5)]
    assert shape_of(repeat.children[0].children) == [(2, 2)]


# --- speed ----------------------------------------------------------------------------------------------------------


def seconds(gm: fx.GraphModule) -> float:
    start = time.process_time()
    find_repeats(gm)
    return time.process_time() - start


@pytest.mark.timed
def test_twenty_thousand_nodes_take_seconds() -> None:
    gm = residual(285, inner=34)
    assert len(gm.graph.nodes) > 19_000
    start = time.process_time()
    (repeat,) = find_repeats(gm)
    # A tenth of that on a free core.
    assert time.process_time() - start < 12.0
    assert shape_of((repeat,)) == [(285, 69)]


@pytest.mark.timed
def test_time_grows_near_linearly() -> None:
    small, large = residual(100, inner=8), residual(800, inner=8)
    find_repeats(small)
    # Quadratic growth would be 64 times. The least of several runs, as other work on the machine only adds.
    assert min(seconds(large) for _ in range(3)) < 24 * max(min(seconds(small) for _ in range(5)), 0.02)


@pytest.mark.parametrize("depth", [2, 3])
def test_long_blocks_filled_by_a_shorter_repeat(depth: int) -> None:
    (repeat,) = find_repeats(residual(depth, inner=1500))
    assert shape_of((repeat,)) == [(depth, 3001)]
    assert shape_of(repeat.children) == [(1500, 2)]


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
    known, depends = segmentation._Mismatches.known, segmentation.depends

    def count_pairs(self: segmentation._Mismatches, pattern: int, found: int, start: int) -> int | None:
        calls["pairs"] += 1
        return known(self, pattern, found, start)

    def count_searches(*args: Any) -> bool:
        calls["searches"] += 1
        return depends(*args)

    monkeypatch.setattr(segmentation._Mismatches, "known", count_pairs)
    monkeypatch.setattr(segmentation, "depends", count_searches)
    assert find_repeats(gm)
    # Without what is remembered of other phases: 95 pairs for each node, and a search for each phase that is tried.
    assert calls["pairs"] < 3 * len(gm.graph.nodes)
    assert calls["searches"] < 100


# --- on captured models ---------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.probability)
        return x * keep / (1 - self.probability)


class ConvBlock(nn.Module):
    def __init__(self, width: int, norm: str, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm: nn.Module = nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(2, width)
        self.dropout, self.path = dropout, DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout2d(F.relu(self.norm(self.first(x))), self.dropout, self.training)
        return x + self.path(self.second(y))  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    def __init__(self, width: int, post_norm: bool, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.post_norm, self.dropout = post_norm, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.path(self.out(y))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            return self.norm(x + self.attend(x))  # type: ignore[no-any-return]
        return x + self.attend(self.norm(x))


class Network(nn.Module):
    def __init__(self, stem: nn.Module, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.stem, self.blocks = stem, nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


@settings(max_examples=6)
@given(
    convolutional=st.booleans(),
    width=st.sampled_from([4, 6, 10]),
    depth=st.integers(2, 5),
    norm=st.sampled_from(["batch", "group"]),
    post_norm=st.booleans(),
    dropout=st.sampled_from([0.0, 0.2]),
    drop_path=st.sampled_from([0.0, 0.3]),
)
def test_random_networks_capture_exactly_and_repeat_as_built(
    convolutional: bool, width: int, depth: int, norm: str, post_norm: bool, dropout: float, drop_path: float
) -> None:
    # Stochastic depth grows from 0, as it does in practice.
    rates = [drop_path * i / depth for i in range(depth)]
    blocks: list[nn.Module]
    if convolutional:
        blocks = [ConvBlock(width, norm, dropout, rate) for rate in rates]
        model, x = Network(nn.Conv2d(3, width, 3), blocks), torch.randn(2, 3, 8, 8)
    else:
        blocks = [AttentionBlock(width, post_norm, dropout, rate) for rate in rates]
        model, x = Network(nn.Linear(7, width), blocks), torch.randn(2, 5, 7)
    gm = capture(model, (x,))
    assert check_capture(model, gm, (x,))
    (repeat,) = find_repeats(gm)
    assert [block.module_path for block in repeat.blocks] == [f"blocks.{i}" for i in range(depth)]
    assert_sound((repeat,))


def test_loop_over_bare_parameters_is_found() -> None:
    source = load_source(str(EXAMPLES / "plain_parameters.py"))
    gm = capture(source.model, source.args)
    (repeat,) = find_repeats(gm)
    assert len(repeat) == 6
    assert repeat.blocks[0].module_path is None
    assert [p.split(".")[0] for p in repeat.blocks[2].parameters] == ["gains", "up", "up_bias", "down", "down_bias"]
    assert {p.split(".")[1] for p in repeat.blocks[2].parameters} == {"2"}


@pytest.mark.parametrize(("name", "expected"), [("resnet32", [5, 4, 4]), ("mlp", [8])])
def test_examples(name: str, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPL_FX_CHECK", "1")
    source = load_source(str(EXAMPLES / f"{name}.py"))
    gm = capture(source.model, source.args, source.kwargs)
    repeats = find_repeats(gm)
    assert_sound(repeats)
    assert [len(repeat) for repeat in repeats] == expected
    assert check_capture(source.model, gm, source.args, source.kwargs)


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


class _Looks(nn.Module):
    """A residual layer that clamps when it must, in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.fc(x)
        if (x.abs() > 4).any():
            x = x.clamp(-4, 4)
        return x


def test_what_a_block_asks_about_its_own_values_is_the_block_s() -> None:
    x = torch.randn(2, 8)
    gm = capture(nn.Sequential(*(_Looks() for _ in range(3))), (x,))
    (repeat,) = find_repeats(gm)
    assert [len(block.side_outputs) for block in repeat.blocks] == [0, 0, 0]
    result = transform(gm, (x,), surrogate="identity")
    assert len(result.plan.replacements) == 1


class _Offsets(nn.Module):
    """Each layer takes a tensor that is made for it alone before the first one."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        offsets = [torch.zeros(8) + (0 if self.same else i) for i in range(4)]
        for layer, offset in zip(self.layers, offsets, strict=True):
            x = torch.relu(layer(x) + offset)
        return x


@pytest.mark.parametrize(("same", "found"), [(True, [4]), (False, [])])
def test_values_computed_alike_from_constants_count_as_one(same: bool, found: list[int]) -> None:
    gm = capture(_Offsets(same), (torch.randn(2, 8),))
    assert [len(repeat) for repeat in find_repeats(gm) if not repeat.similar] == found
