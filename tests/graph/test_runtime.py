"""Checks, mode switches and regions that a captured graph calls."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import fx, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.graph.runtime import (
    ModeSwitch,
    SizeCheck,
    check_condition,
    check_constant,
    check_items,
    check_keys,
    check_layout,
    check_shape,
    enter_grad_mode,
    restore_grad_mode,
    same_constant,
    select_mode,
)


def test_runtime_checks() -> None:
    check_constant(1.0, 1.0, "argument 'x'")
    check_shape(torch.zeros(2, 3), (None, 3), "argument 'x'")
    with pytest.raises(BadInput, match="argument 'x' was captured as 1, not 2; capture the model again"):
        check_constant(2, 1, "argument 'x'")
    with pytest.raises(BadInput, match=r"argument 'x' has shape \[2, 3, 1\], but was captured as \[any, 3\]"):
        check_shape(torch.zeros(2, 3, 1), (None, 3), "argument 'x'")
    check_keys({"a": 1}, ("a",), "argument 'x'")
    with pytest.raises(BadInput, match=r"argument 'x' has no key 'b', which .*; its keys are 'a'$"):
        check_keys({"a": 1}, ("a", "b"), "argument 'x'")
    check_items([1, 2], 2, "argument 'x'")
    with pytest.raises(BadInput, match="argument 'x' has length 2, but was captured with 3"):
        check_items([1, 2], 3, "argument 'x'")


def test_a_graph_is_not_traced_once_more_by_fx() -> None:
    class Checked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            check_shape(x, (None, 3), "argument 'x'")
            return x

    with pytest.raises(BadInput, match=r"torch.fx traces Python code, and this is a graph already; .*result.model"):
        fx.symbolic_trace(Checked())
    kept = pickle.dumps(fx.GraphModule(gm := repl_fx.capture(nn.Linear(3, 3), (torch.ones(2, 3),)), gm.graph))
    with pytest.raises(BadInput, match=r"the pickle of an fx.GraphModule .*; pickle the graph of repl-fx"):
        pickle.loads(kept)


def test_plain_values_are_the_same_in_kind_and_value() -> None:
    alike = [(math.nan, float("nan")), (2, 2), ("a", "a"), (None, None), (torch.float16, torch.half), ((1,), (1,))]
    unlike = [(True, 1), (1, 1.0), (0.0, -0.0), (None, 0), (2.0, torch.tensor(2.0)), (2.0, np.float64(2.0)), ("a", "b")]
    assert [same_constant(*pair) for pair in alike] == [True] * len(alike)
    assert [same_constant(*pair) for pair in unlike] == [False] * len(unlike)


def test_sizes_below_the_least_and_conditions_of_another_truth_are_refused() -> None:
    check = SizeCheck("s1 != 1", (("s1", 0, 1),), "x.shape[1] != 1", " (at model.py, line 3)")
    check(torch.zeros(3, 2))
    assert check.fails_at_one and not SizeCheck("s1 > 2", (("s1", 0, 1),), "x.shape[1] > 2", "").fails_at_one
    with pytest.raises(BadInput, match=r"shape \[3, 1\]: .* x\.shape\[1\] != 1 \(at model\.py, line 3\), as it"):
        check(torch.zeros(3, 1))
    with pytest.raises(BadInput, match=r"the model takes only x\.shape\[1\] != 1; give others"):
        SizeCheck("s1 != 1", (("s1", 0, 1),), "x.shape[1] != 1", "", limit=True)(torch.zeros(3, 1))
    assert pickle.loads(pickle.dumps(check)) == check
    check_condition(torch.tensor(True), True, "x.any()")
    with pytest.raises(BadInput, match=r"x\.any\(\) was True for the inputs .* and is False for these"):
        check_condition(torch.tensor(False), True, "x.any()")


def test_a_mode_switch_runs_the_version_of_its_mode() -> None:
    versions = []
    for operator in (torch.neg, torch.relu):
        graph = fx.Graph()
        graph.output(graph.call_function(operator, (graph.placeholder("x"),)))
        versions.append(fx.GraphModule(nn.Module(), graph))
    switch, x = ModeSwitch(*versions), torch.tensor([-1.0, 2.0])
    assert torch.equal(switch.train()(x), -x)
    assert torch.equal(switch.eval()(x), x.relu())
    assert (select_mode(True, 1, 2), select_mode(False, 1, 2)) == (1, 2)


def test_a_region_of_gradients_ends_in_the_mode_before_it() -> None:
    with torch.enable_grad():
        previous = enter_grad_mode(False)
        assert not torch.is_grad_enabled()
        restore_grad_mode(previous)
        assert torch.is_grad_enabled()


def test_checks_and_regions_are_no_dead_code() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(check_shape, (x, (None,), "argument 'x'"))
    graph.call_function(enter_grad_mode, (False,))
    graph.call_function(select_mode, (True, x, x))
    graph.output(x)
    graph.eliminate_dead_code()
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [check_shape, enter_grad_mode]


def test_other_strides_are_refused_where_they_say_something() -> None:
    x = torch.ones(2, 3, 4)
    for fine in (x, torch.ones(1, 3, 4).transpose(0, 0), torch.empty_strided((1, 3, 4), (7, 4, 1))):
        assert check_layout(fine, None, [12, 4, 1], "") is fine
    assert check_layout(x.mT, torch.contiguous_format, [0], "").shape == (2, 4, 3)
    for other, layout, expected in (
        (x.mT, None, [12, 4, 1]),
        (x.mT, torch.contiguous_format, [1]),
        (x, torch.contiguous_format, [0]),
    ):
        with pytest.raises(BadInput, match=r"^the model asks for the strides of a tensor at a\.py, line 3, [^\n]*$"):
            check_layout(other, layout, expected, " at a.py, line 3")


@pytest.mark.parametrize(
    "condition",
    [
        "a % 4 == 0",
        "a // 3 <= 2 and not b > 5",
        "a == b or (a > 3 and b > 3)",
        "max(a, b, 4) == 4",
        "min(a, b) != 2",
        "-a + b < 0",
        "math.floor(torch.sym_float(a) / 2) == b",
        "math.ceil(a / 2) * math.trunc(b / 2) > 3",
    ],
)
def test_conditions_on_sizes_are_computed_by_operators_too(condition: str) -> None:
    check = SizeCheck(condition, (("a", 0, 1), ("b", 1, 0)), condition, "")
    for a, b in itertools.product(range(1, 10), repeat=2):
        given = torch.zeros(2, a), torch.zeros(b)
        found = check.truth(*given)
        assert found.shape == () and bool(found) is bool(check.holds(*given))
