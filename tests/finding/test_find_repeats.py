"""The repeats of a graph: found where they are, with their boundaries, and nowhere else."""

from __future__ import annotations

import operator
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.finding.find_repeats import _candidate_shifts, _choose, _ChosenCutting, find_repeats, match_at_shift
from repl_fx.finding.node_table import node_table
from repl_fx.sources import load_source
from repl_fx.tracing.capture import capture, check_capture
from tests.graphs import Graph, assert_sound, residual, shape_of
from tests.nets import MlpBlock

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def positions(chosen: Sequence[_ChosenCutting]) -> list[tuple[list[list[int]], object]]:
    return [(found.cutting.members.tolist(), positions(found.children)) for found in chosen]


def outline(gm: fx.GraphModule) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    return [
        (r.name, [(b.name, b.input.name, b.output.name, " ".join(n.name for n in b.nodes)) for b in r.blocks])
        for r in find_repeats(gm)
    ]


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
        y = graph.call(torch.ops.aten.relu.default, graph.linear(x, width))
        x = graph.call(torch.ops.aten.add.Tensor, x, y)
    *repeats, similar = find_repeats(graph.done(x))
    assert shape_of(tuple(repeats)) == [(3, 3), (2, 3)]
    assert_sound(tuple(repeats))
    # Up to the width they are alike.
    assert similar.similar and shape_of((similar,)) == [(5, 3)]


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


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**20), st.integers(2, 6), st.integers(8, 160))
def test_candidate_shifts_find_what_all_shifts_find(seed: int, kinds: int, length: int) -> None:
    table = node_table(random_graph(seed, kinds, length))
    every = _choose(table, range(1, len(table.nodes)))
    candidates = _choose(table, _candidate_shifts(table))
    assert positions(candidates) == positions(every)


def test_matches_need_equal_labels_and_equal_wiring() -> None:
    table = node_table(residual(3))
    # stem, 3 x (linear relu linear relu add), head; the last node of the last block has no counterpart.
    assert match_at_shift(table, 5).tolist() == [False] + [True] * 10 + [False]
    assert not match_at_shift(table, 4).any()


# --- repeats inside repeats -----------------------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.timed
def test_twenty_thousand_nodes_take_seconds() -> None:
    gm = residual(285, inner=34)
    assert len(gm.graph.nodes) > 19_000
    start = time.process_time()
    (repeat,) = find_repeats(gm)
    # A tenth of that on a free core.
    assert time.process_time() - start < 12.0
    assert shape_of((repeat,)) == [(285, 69)]


@pytest.mark.slow
@pytest.mark.timed
def test_time_grows_near_linearly() -> None:
    small, large = residual(100, inner=8), residual(800, inner=8)
    find_repeats(small)
    # Quadratic growth would be 64 times. The least of several runs, as other work on the machine only adds.
    assert min(seconds(large) for _ in range(3)) < 24 * max(min(seconds(small) for _ in range(5)), 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_long_blocks_filled_by_a_shorter_repeat(depth: int) -> None:
    (repeat,) = find_repeats(residual(depth, inner=1500))
    assert shape_of((repeat,)) == [(depth, 3001)]
    assert shape_of(repeat.children) == [(1500, 2)]


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


@pytest.mark.slow
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


class _Flat(nn.Module):
    """A block whose weights are one flat parameter, read in parts, as in e3nn."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2 * 64) / 8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.weights[part : part + 64].view(8, 8) for part in (0, 64))
        return x + torch.tanh(x @ first) @ second


def test_blocks_of_flat_weights_repeat() -> None:
    model, x = nn.Sequential(*(_Flat() for _ in range(5))), torch.randn(3, 8)
    assert shape_of(find_repeats(capture(model, (x,)))) == [(5, 8)]
    result = repl_fx.transform(model, (x,), surrogate="identity", every=2)
    expected = x
    for number in (0, 2, 4):
        expected = model[number](expected)
    assert torch.equal(result.model(x), expected)


def test_parameters_count_once_however_often_they_are_called() -> None:
    blocks = [MlpBlock(8) for _ in range(3)]
    model = nn.Sequential(*blocks, *blocks, *blocks)
    (repeat,) = find_repeats(repl_fx.capture(model, (torch.randn(2, 8),)))
    assert len(repeat) == 9 and not repeat.shared
    assert repeat.size == sum(p.numel() for p in model.parameters()) == 3 * repeat.blocks[0].size


class _TwiceInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.fc(x).relu())  # type: ignore[no-any-return]


def test_a_layer_that_a_block_calls_twice_counts_once() -> None:
    (repeat,) = find_repeats(repl_fx.capture(nn.Sequential(*(_TwiceInside() for _ in range(3))), (torch.randn(2, 8),)))
    assert [block.size for block in repeat.blocks] == [72] * 3 and repeat.size == 216


class _Routed(nn.Module):
    """Sorts positions by the expert that they go to; how many go to each is read from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 2), nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 8)
        expert = self.router(flat).argmax(-1)
        order, first = expert.argsort(), (expert == 0).sum().item()
        torch._check(first >= 0)
        torch._check(first <= flat.shape[0])
        parts = torch.split(flat[order], [first, flat.shape[0] - first])
        made = torch.cat([layer(part) for layer, part in zip(self.experts, parts, strict=True)])
        return x + torch.zeros_like(flat).index_add(0, order, made).view_as(x)


def test_blocks_with_sizes_that_each_reads_from_its_data_repeat() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(_Routed() for _ in range(4)), nn.Linear(8, 3)).eval()
    result = repl_fx.transform(model, (torch.randn(2, 6, 8),), surrogate="identity")
    assert [one.block for one in result.plan.replacements] == ["1"] and result.in_place.model is not None
    other = torch.randn(3, 7, 8)
    wanted = model[4](model[3](model[2](model[0](other))))
    assert torch.equal(result.model(other), wanted) and torch.equal(result.graph_module.eval()(other), wanted)
