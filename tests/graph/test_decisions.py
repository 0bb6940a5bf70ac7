"""Tests for repl_fx.graph.decisions: layers that are jumped over."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from repl_fx.errors import BrokenGraph
from repl_fx.graph.captured import CapturedModule, has_effect
from repl_fx.graph.decisions import Comparison, Condition, Decision, choose, is_random, settle_decisions_, skippable


def _skips(condition: Any) -> CapturedModule:
    """Doubles x unless skipped; the size of x, computed in the layer, is used behind it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    truth = graph.call_function(torch.any, (graph.call_function(torch.gt, (x, 5)),))
    skip = graph.call_function(condition, (truth,) if isinstance(condition, Condition) else (True,))
    rows = graph.call_function(torch.ops.aten.sym_size.int, (x, 0))
    doubled = graph.call_function(torch.mul, (x, 2))
    chosen = graph.call_function(choose, (skip, x, doubled))
    graph.output(graph.call_function(torch.mul, (chosen, rows)))
    return CapturedModule(nn.Module(), graph)


def test_a_condition_skips_by_what_it_is_given_and_needed_sizes_are_computed_first() -> None:
    gm = _skips(Condition(True))
    ((skip, layer, _),) = skippable(gm.graph)
    assert [node.target for node in layer] == [torch.mul]
    assert not is_random(skip)
    assert torch.equal(gm(torch.tensor([1.0, 2.0])), torch.tensor([4.0, 8.0]))
    assert torch.equal(gm(torch.tensor([1.0, 6.0])), torch.tensor([2.0, 12.0]))


def test_a_skipped_layer_is_not_run() -> None:
    gm = _skips(Decision(lambda: True, True))
    code = gm.code.splitlines()
    assert any(line.strip().startswith("if skip_layer") for line in code)
    ran: list[Tensor] = []

    def noted(x: Tensor, by: int) -> Tensor:
        ran.append(x)
        return x * by

    next(n for n in gm.graph.nodes if n.target is torch.mul).target = noted
    gm.recompile()
    gm(torch.ones(2))
    assert not ran


def test_a_decision_is_never_true_in_evaluation_mode() -> None:
    always = Decision(lambda: True, True)
    assert always(True)
    assert not always(False)


def test_comparisons_draw_anew() -> None:
    numbers = iter([0.1, 0.9])
    drawn = Comparison(lambda: next(numbers), (), operator.lt, 0.5)
    assert [drawn(), drawn()] == [True, False]


def test_an_effect_that_is_needed_either_way_cannot_be_skipped() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    skip = graph.call_function(Decision(lambda: True, True), (True,))
    changed = graph.call_function(torch.ops.aten.add_.Tensor, (x, 1))
    chosen = graph.call_function(choose, (skip, x, x))
    graph.output((chosen, changed))
    with pytest.raises(BrokenGraph, match="add__tensor has an effect, and is needed whether skip_layer skips or not"):
        settle_decisions_(graph, has_effect)
