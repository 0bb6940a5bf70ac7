"""Two graphs of one model become one: what differs is switched, and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations
from transformers.utils import ModelOutput

from repl_fx.errors import BadInput
from repl_fx.graph.captured import CapturedModule
from repl_fx.graph.runtime import ModeSwitch, select_mode
from repl_fx.passes.merge_modes import MergeResult, merge_modes_
from repl_fx.tracing.capture import capture

Build = Callable[[fx.Graph, fx.Node], Any]
aten = torch.ops.aten


def graph_of(build: Build) -> fx.Graph:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, 3, device="meta")
    graph.output(build(graph, x))
    for node in graph.nodes:
        if node.op not in ("placeholder", "output"):
            node.meta.setdefault("val", torch.empty(2, 3, device="meta"))
    return graph


def merge(train: fx.Graph, evaluation: fx.Graph, root: nn.Module) -> MergeResult:
    result = merge_modes_(CapturedModule(root, train, compiled=False), evaluation)
    result.graph_module.recompile()
    return result


def merged(train: Build, evaluation: Build, root: nn.Module | None = None) -> tuple[fx.GraphModule, int, int]:
    root = root if root is not None else nn.Module()
    graph = graph_of(evaluation)
    text = str(graph)
    result = merge(graph_of(train), graph, root)
    # The evaluation graph is not touched.
    assert str(graph) == text
    assert result.modified is bool(result.literals or result.switches)
    result.graph_module.graph.lint()
    return result.graph_module, result.literals, result.switches


def plus(value: float) -> Build:
    return lambda graph, x: graph.call_function(torch.add, (x, value))


def run(gm: fx.GraphModule, training: bool) -> Any:
    return gm.train(training)(torch.ones(2, 3))


def test_equal_graphs_need_nothing() -> None:
    gm, literals, switches = merged(plus(1.0), plus(1.0))
    assert (literals, switches) == (0, 0)
    assert [n.op for n in gm.graph.nodes] == ["placeholder", "call_function", "output"]


def test_nan_is_equal_to_itself_and_one_is_not_true() -> None:
    assert merged(plus(float("nan")), plus(float("nan")))[1:] == (0, 0)
    gm, literals, _ = merged(
        lambda g, x: g.call_function(torch.sum, (x,), {"keepdim": True}),
        lambda g, x: g.call_function(torch.sum, (x,), {"keepdim": 1}),
    )
    assert literals == 1
    assert [n.target for n in gm.graph.nodes].count(select_mode) == 1


def test_a_literal_is_picked_by_the_mode() -> None:
    gm, literals, switches = merged(plus(1.0), plus(5.0))
    assert (literals, switches) == (1, 0)
    assert run(gm, True)[0, 0] == 2 and run(gm, False)[0, 0] == 6


def test_a_flag_becomes_the_mode_itself() -> None:
    def dropout(training: bool) -> Build:
        return lambda graph, x: graph.call_function(aten.dropout.default, (x, 0.5, training))

    gm, literals, switches = merged(dropout(True), dropout(False))
    assert (literals, switches) == (1, 0)
    assert [n.target for n in gm.graph.nodes if n.op == "get_attr"] == ["training"]
    assert not any(n.target is select_mode for n in gm.graph.nodes)
    assert torch.equal(run(gm, False), torch.ones(2, 3))
    assert set(run(gm, True).unique().tolist()) <= {0.0, 2.0}


def test_defaults_left_away_are_spelled_out() -> None:
    def attention(*more: Any) -> Build:
        return lambda graph, x: graph.call_function(aten.scaled_dot_product_attention.default, (x, x, x, *more))

    gm, literals, switches = merged(attention(None, 0.5), attention())
    assert (literals, switches) == (1, 0)
    assert torch.equal(run(gm, False), torch.ones(2, 3))


@pytest.mark.parametrize("more_in_training", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_copy_of_another_value_is_switched(more_in_training: bool, earlier: bool) -> None:
    graphs = []
    for copies in (more_in_training, not more_in_training):
        graph = fx.Graph()
        x = graph.placeholder("x")
        doubled, tripled = (graph.call_function(torch.mul, (x, factor)) for factor in (2.0, 3.0))
        one, other = (doubled, tripled) if earlier else (tripled, doubled)
        taken = graph.call_function(aten.clone.default, (one,)) if copies else other
        product = graph.call_function(torch.mul, (doubled, tripled))
        graph.output(graph.call_function(torch.add, (graph.call_function(torch.neg, (taken,)), product)))
        for node in graph.nodes:
            if node.op != "output":
                node.meta["val"] = torch.empty(2, 3, device="meta")
        graphs.append(graph)
    gm = merge(graphs[0], graphs[1], nn.Module()).graph_module
    copied, plain = (4.0, 3.0) if earlier else (3.0, 4.0)
    for training in (True, False):
        assert run(gm, training)[0, 0] == (copied if training is more_in_training else plain)


def test_a_value_of_training_may_stand_against_two_of_evaluation() -> None:
    def train(graph: fx.Graph, x: fx.Node) -> Any:
        a = graph.call_function(torch.neg, (x,))
        return graph.call_function(torch.add, (a, graph.call_function(torch.mul, (a, 2.0))))

    def evaluation(graph: fx.Graph, x: fx.Node) -> Any:
        b, c = graph.call_function(torch.exp, (x,)), graph.call_function(torch.tanh, (x,))
        return graph.call_function(torch.add, (b, graph.call_function(torch.mul, (c, 2.0))))

    gm, _, _ = merged(train, evaluation)
    x = torch.ones(2, 3)
    assert torch.equal(run(gm, True), -3 * x)
    torch.testing.assert_close(run(gm, False), x.exp() + 2 * x.tanh())


def test_the_mode_is_that_of_the_module_that_asks() -> None:
    class Inner(nn.Module):
        """One that its owner may keep in evaluation."""

    root = nn.Module()
    root.outer = nn.Module()
    root.outer.inner = Inner()

    def dropout(training: bool) -> fx.Graph:
        graph = graph_of(lambda g, x: g.call_function(aten.dropout.default, (x, 0.5, training)))
        (node,) = (n for n in graph.nodes if n.op == "call_function")
        node.meta["nn_module_stack"] = {"a": ("", nn.Module), "b": ("outer", nn.Module), "c": ("outer.inner", Inner)}
        return graph

    gm = merge(dropout(True), dropout(False), root).graph_module.train()
    assert isinstance(gm, fx.GraphModule)
    assert [n.target for n in gm.graph.nodes if n.op == "get_attr"] == ["outer.inner.training"]
    gm.get_submodule("outer.inner").eval()
    assert torch.equal(gm(torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize("more_in_training", [True, False])
@pytest.mark.parametrize("copy", [aten.contiguous.default, aten.clone.default])
def test_a_copy_of_one_mode_is_made_in_that_mode_whatever_the_strides_of_the_trace(
    more_in_training: bool, copy: Any
) -> None:
    how: dict[str, Any] = {"memory_format": torch.contiguous_format}

    def build(copies: bool) -> Build:
        def made(graph: fx.Graph, x: fx.Node) -> Any:
            return graph.call_function(aten.relu.default, (graph.call_function(copy, (x,), how) if copies else x,))

        return made

    gm, literals, switches = merged(build(more_in_training), build(not more_in_training))
    assert (literals, switches) == (0, 1)
    x = torch.ones(3, 2).t()
    for training in (True, False):
        assert gm.train(training)(x).is_contiguous() is (training is more_in_training)


@pytest.mark.parametrize("through", [None, aten.view.default])
def test_a_copy_that_keeps_a_value_from_later_writes_is_switched(through: Any) -> None:
    def build(copies: bool) -> Build:
        def made(graph: fx.Graph, x: fx.Node) -> Any:
            taken = y = graph.call_function(torch.mul, (x, 2.0))
            if copies:
                taken = graph.call_function(aten.clone.default, (y,))
            shaped = taken if through is None else graph.call_function(through, (taken, [2, 3]))
            graph.call_function(aten.add_.Tensor, (shaped, 1.0))
            return graph.call_function(torch.add, (taken, y))

        return made

    gm, _, switches = merged(build(True), build(False))
    assert switches == 1
    assert run(gm, True)[0, 0] == 5 and run(gm, False)[0, 0] == 6


def test_different_operators_are_switched() -> None:
    gm, literals, switches = merged(
        lambda g, x: g.call_function(torch.neg, (g.call_function(torch.exp, (x,)),)),
        lambda g, x: g.call_function(torch.neg, (g.call_function(torch.sin, (g.call_function(torch.cos, (x,)),)),)),
    )
    assert (literals, switches) == (0, 1)
    assert torch.equal(run(gm, True), -torch.ones(2, 3).exp())
    assert torch.equal(run(gm, False), -torch.ones(2, 3).cos().sin())
    (switch,) = [m for m in gm.modules() if isinstance(m, ModeSwitch)]
    assert not list(switch.parameters())


def test_a_call_with_other_keywords_is_switched() -> None:
    def rounded(**keywords: Any) -> Build:
        return lambda g, x: g.call_function(torch.round, (g.call_function(torch.mul, (x, 1.26)),), keywords)

    gm, literals, switches = merged(rounded(decimals=1), rounded())
    assert (literals, switches) == (0, 1)
    assert torch.equal(run(gm, True), torch.full((2, 3), 1.3))
    assert torch.equal(run(gm, False), torch.ones(2, 3))


def test_what_training_makes_behind_the_region_of_evaluation_is_picked_where_it_is_used() -> None:
    def train(g: fx.Graph, x: fx.Node) -> Any:
        y = g.call_function(torch.add, (x, 1.0))
        return g.call_function(torch.mul, (y, y))

    def evaluate(g: fx.Graph, x: fx.Node) -> Any:
        state = g.call_function(torch.neg, (x,))
        y = g.call_function(torch.add, (x, 1.0))
        return g.call_function(torch.mul, (y, state))

    gm, literals, switches = merged(train, evaluate)
    assert (literals, switches) == (1, 1)
    assert run(gm, True)[0, 0] == 4 and run(gm, False)[0, 0] == -2


def test_values_of_one_region_used_in_another() -> None:
    def train(g: fx.Graph, x: fx.Node) -> Any:
        early = g.call_function(torch.exp, (x,))
        middle = g.call_function(torch.relu, (x,))
        return g.call_function(torch.neg, (g.call_function(torch.mul, (early, middle)),))

    def evaluation(g: fx.Graph, x: fx.Node) -> Any:
        early = g.call_function(torch.sin, (g.call_function(torch.cos, (x,)),))
        middle = g.call_function(torch.relu, (x,))
        return g.call_function(
            torch.neg,
            (
                g.call_function(
                    torch.sub,
                    (
                        middle,
                        early,
                    ),
                ),
            ),
        )

    gm, literals, switches = merged(train, evaluation)
    assert (literals, switches) == (0, 2)
    x = torch.ones(2, 3)
    assert torch.equal(run(gm, True), -(x.exp() * x))
    assert torch.equal(run(gm, False), -(x - x.cos().sin()))


def test_a_literal_where_the_other_mode_computes() -> None:
    # The same literal stands elsewhere among the arguments, where it must stay.
    gm, literals, switches = merged(
        lambda g, x: g.call_function(torch.clamp, (x, 0.5, 0.5)),
        lambda g, x: g.call_function(torch.clamp, (x, g.call_function(torch.exp, (x,)), 0.5)),
    )
    assert literals + switches >= 1
    assert torch.equal(run(gm, True), torch.full((2, 3), 0.5))


def test_a_module_that_one_mode_calls_comes_in_as_an_argument() -> None:
    root = nn.Module()
    root.add_module("aux", nn.Linear(3, 3))
    gm, _, switches = merged(
        lambda g, x: g.call_function(torch.neg, (g.call_module("aux", (x,)),)),
        lambda g, x: g.call_function(torch.neg, (x,)),
        root,
    )
    assert switches == 1
    aux: Any = gm.get_submodule("aux")
    assert torch.equal(run(gm, True), -aux(torch.ones(2, 3)))
    assert torch.equal(run(gm, False), -torch.ones(2, 3))
    assert [name for name, _ in gm.named_parameters(remove_duplicate=False)] == ["aux.weight", "aux.bias"]


def test_an_effect_of_one_mode_that_nothing_uses() -> None:
    root = nn.Module()
    root.register_buffer("count", torch.zeros(()))

    def counts(g: fx.Graph, x: fx.Node) -> Any:
        g.call_function(aten.add_.Tensor, (g.create_node("get_attr", "count"), 1))
        return g.call_function(torch.neg, (x,))

    gm, literals, switches = merged(counts, lambda g, x: g.call_function(torch.neg, (x,)), root)
    assert (literals, switches) == (0, 1)
    run(gm, False)
    assert gm.get_buffer("count").item() == 0
    run(gm, True)
    assert gm.get_buffer("count").item() == 1


def test_a_pure_difference_that_nothing_uses_is_dropped() -> None:
    def unused(g: fx.Graph, x: fx.Node) -> Any:
        g.call_function(torch.exp, (x,))
        return g.call_function(torch.neg, (x,))

    gm, literals, switches = merged(unused, lambda g, x: g.call_function(torch.neg, (x,)))
    assert (literals, switches) == (0, 0)
    assert not any(n.target is torch.exp for n in gm.graph.nodes)


@pytest.mark.parametrize("parametrize", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_weight_that_evaluation_asks_for_and_does_not_read_is_dropped(parametrize: Callable[..., Any]) -> None:
    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)
            parametrize(self.inner.out_proj)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x, x, x)[0]

    model, x = SelfAttention(), torch.randn(2, 4, 8)
    gm = capture(model, (x,))
    assert not any(isinstance(module, ModeSwitch) for module in gm.modules())
    assert torch.equal(gm.eval()(x), model.eval()(x))


def test_merging_a_merged_graph_with_itself_changes_nothing() -> None:
    first = merge(graph_of(plus(1.0)), graph_of(plus(5.0)), nn.Module())
    text = str(first.graph_module.graph)
    second = merge_modes_(first.graph_module, first.graph_module.graph)
    assert first.modified and not second.modified
    assert str(second.graph_module.graph) == text


def test_outputs_of_each_mode_may_have_another_structure() -> None:
    def several(g: fx.Graph, x: fx.Node) -> Any:
        return {"main": g.call_function(torch.neg, (x,)), "aux": (g.call_function(torch.exp, (x,)), 3)}

    gm, literals, switches = merged(several, lambda g, x: g.call_function(torch.neg, (x,)))
    assert (literals, switches) == (1, 1)
    out, x = run(gm, True), torch.ones(2, 3)
    assert torch.equal(out["main"], -x) and torch.equal(out["aux"][0], x.exp()) and out["aux"][1] == 3
    plain = run(gm, False)
    assert isinstance(plain, Tensor) and torch.equal(plain, -x)


@dataclass
class _Named(ModelOutput):  # type: ignore[misc]
    one: Any = None
    other: Any = None


def _asks_for(least: int, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] >= least else x * 3


@pytest.mark.parametrize(
    ("of_training", "of_evaluation"),
    [
        (lambda x: _Named(one=x), lambda x: _Named(other=x)),
        (lambda x: OrderedDict(one=x), lambda x: OrderedDict(other=x)),
        (lambda x: [x, x + 1], lambda x: (x, x + 1)),
        (lambda x: {"both": [x, x]}, lambda x: {"both": (x, x)}),
        # Each mode asks once, and for another size.
        (partial(_asks_for, 3), partial(_asks_for, 5)),
    ],
    ids=["fields", "keys", "lists and tuples", "tuples inside", "conditions"],
)
def test_what_modes_pack_and_ask_alike_but_for_names_is_that_of_the_mode(
    of_training: Callable[[Tensor], Any], of_evaluation: Callable[[Tensor], Any]
) -> None:
    class Packs(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return of_training(x) if self.training else of_evaluation(x)

    model = Packs()
    gm = capture(model, (torch.rand(6, 3),))
    for training in (True, False):
        for rows in (2, 4, 6, 9):
            ours, x = model.train(training), torch.rand(rows, 3)
            with suppress(BadInput):
                made, wanted = gm.train(training)(x), ours(x)
                assert type(made) is type(wanted)
                assert str(made) == str(wanted)


@pytest.mark.parametrize(("dimension", "switched"), [(0, 0), (1, 1)])
def test_a_size_that_training_knows_earlier_serves_evaluation(dimension: int, switched: int) -> None:
    def scaled(early: bool, dimension: int) -> Build:
        def build(g: fx.Graph, x: fx.Node) -> Any:
            def size() -> fx.Node:
                made = g.call_function(aten.sym_size.int, (x, dimension))
                made.meta["val"] = 2 + dimension
                return made

            count = size() if early else None
            y = g.call_function(torch.exp, (g.call_function(torch.neg, (x,)),))
            return g.call_function(torch.mul, (y, size() if count is None else count))

        return build

    gm, literals, switches = merged(scaled(True, 0), scaled(False, dimension))
    assert (literals, switches) == (0, switched)
    x = torch.ones(2, 3)
    assert torch.equal(run(gm, True), (-x).exp() * 2)
    assert torch.equal(run(gm, False), (-x).exp() * (2 + dimension))


def test_sizes_of_other_dimensions_are_no_counterparts() -> None:
    def scaled(*dimensions: int) -> Build:
        """One mode may leave a size free, and ask for it, that the other fixes."""

        def build(g: fx.Graph, x: fx.Node) -> Any:
            sizes = {dimension: g.call_function(aten.sym_size.int, (x, dimension)) for dimension in dimensions}
            for dimension, size in sizes.items():
                size.meta["val"] = 2 + dimension
            return g.call_function(torch.mul, (g.call_function(torch.neg, (x,)), sizes[0]))

        return build

    gm, literals, switches = merged(scaled(0), scaled(1, 0))
    assert (literals, switches) == (0, 0)
    assert torch.equal(run(gm, False), torch.full((2, 3), -2.0))


class _Picks(nn.Module):
    """Goes on with the rows that are above zero, and copies them in evaluation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[x.sum(1) > 0]
        copied = rows if self.training else rows.clone(memory_format=torch.contiguous_format)
        return self.fc(copied)  # type: ignore[no-any-return]


def test_a_copy_of_as_many_rows_as_values_say_is_made_in_its_mode() -> None:
    model, x = _Picks(), torch.randn(6, 4)
    gm = capture(model, (x,))
    for training in (True, False):
        assert torch.equal(gm.train(training)(x), model.train(training)(x))


def _with_another_mode(model: nn.Module, gm: nn.Module, paths: Sequence[str], x: Tensor) -> Iterator[Any]:
    """What a model returns where one module after the other is in another mode than the rest, and the graph likewise.

    The seed is that of the model's call again.
    """
    for training in (True, False):
        for path in paths:
            for one in (model, gm):
                one.train(training).get_submodule(path).train(not training)
            torch.manual_seed(0)
            expected = model(x)
            torch.manual_seed(0)
            yield expected


class _Asks(nn.Module):
    """Asks its layer for the mode, and not itself."""

    def __init__(self, layer: nn.Module, made: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.inner = nn.Sequential(layer)
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return x + self.made(self.inner(x), self.inner[0].training)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2))])
@pytest.mark.parametrize(
    "made",
    [
        lambda y, training: nn.functional.dropout(y, 0.5, training),
        lambda y, training: y * (2.0 if training else 3.0),
        lambda y, training: y.cumsum(0).sin() if training else y,
    ],
)
def test_the_mode_is_that_of_the_module_inside_that_is_asked(
    layer: nn.Module, made: Callable[[Tensor, bool], Tensor]
) -> None:
    model, x = nn.Sequential(_Asks(layer, made), _Asks(nn.Sequential(layer), made), nn.ReLU()), torch.randn(6, 4)
    gm = capture(model, (x,))
    for expected in _with_another_mode(model, gm, ("0.inner.0", "1.inner.0"), x):
        assert torch.equal(gm(x), expected)


class _Decides(nn.Module):
    """Decides by its own mode about a part, which may ask for its own as well."""

    def __init__(self, kind: str, asks: bool) -> None:
        super().__init__()
        self.part, self.kind = _Part(asks), kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "handed":
            return self.part(x, self.training)
        if self.kind == "called in one":
            return self.part(x) if self.training else x
        if self.kind == "left out":
            y = self.part(x)
            return (x, y.sum()) if self.training else (x,)
        y = self.part(x)
        return y * 3 if self.training else y.sin()


class _Part(nn.Module):
    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.fc, self.asks = nn.Linear(8, 8), asks

    def forward(self, x: Tensor, training: bool = False) -> Tensor:
        x = nn.functional.dropout(self.fc(x), 0.5, training)
        return x.cos() if self.asks and self.training else x


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("kind", ["handed", "called in one", "left out", "beside"])
def test_a_mode_decides_where_its_module_asks_for_it(kind: str, asks: bool) -> None:
    model, x = nn.Sequential(_Decides(kind, asks)), torch.randn(3, 8)
    gm = capture(model, (x,))
    right = 0
    for expected in _with_another_mode(model, gm, ("0", "0.part"), x):
        with suppress(BadInput):
            given = gm(x)
            pairs = zip(given, expected, strict=True) if kind == "left out" else [(given, expected)]
            assert all(torch.equal(*pair) for pair in pairs)
            right += 1
    # Where both ask, one mode alone has what the part does in the other.
    assert right == 4 or asks


def test_modes_that_a_graph_has_nothing_for_are_refused() -> None:
    model, x = _Decides("called in one", asks=True), torch.randn(3, 8)
    gm = capture(model, (x,))
    gm.get_submodule("part").eval()
    with pytest.raises(BadInput, match="a _Decides is in training mode and a module that it calls"):
        gm(x)
    gm.eval()
    assert torch.equal(gm(x), model.eval()(x))


class _AsksBoth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x) + 1 if self.fc.training else self.fc(x)
        return x * 2 if self.training else x.sin()


def test_modes_of_a_forward_that_asks_for_several_are_one_or_refused() -> None:
    model, x = _AsksBoth(), torch.randn(3, 8)
    gm = capture(model, (x,))
    for training in (True, False):
        assert torch.equal(gm.train(training)(x), model.train(training)(x))
    gm.get_submodule("fc").train()
    with pytest.raises(BadInput, match="in evaluation mode"):
        gm(x)
