"""Tests for repl_fx.export.lowering: replacements compute what the originals compute."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from repl_fx.decisions import Condition, choose
from repl_fx.export.lowering import attention, grouped_matmul, lower_, subtracted_from


def test_a_subtraction_from_a_number() -> None:
    x = torch.randn(3)
    assert torch.equal(subtracted_from(x, 1.5), torch.rsub(x, 1.5))
    assert torch.equal(subtracted_from(x, 1.5, 2), torch.rsub(x, 1.5, alpha=2))


@pytest.mark.parametrize("lead", [(3,), (2, 3, 2)])
def test_attention_of_other_ranks(lead: tuple[int, ...]) -> None:
    q, k, v = (torch.randn(*lead, 5, 4) for _ in range(3))
    mask = torch.randn(1, 5, 5) if len(lead) == 1 else torch.randn(2, 1, 1, 5, 5)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(attention(q, k, v, mask), wanted, rtol=0, atol=1e-6)


def test_a_matrix_for_each_group_of_rows() -> None:
    rows, weights, ends = torch.randn(6, 3), torch.randn(3, 3, 2), torch.tensor([2, 2, 6])
    wanted = torch.cat([rows[:2] @ weights[0], rows[2:] @ weights[2]])
    torch.testing.assert_close(grouped_matmul(rows, weights, ends), wanted, rtol=0, atol=1e-6)


def test_conditions_become_a_choice_of_values() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    skip = graph.call_function(Condition(False), (graph.call_function(torch.sum, (x,)),))
    graph.output(graph.call_function(choose, (skip, x, graph.call_function(torch.neg, (x,)))))
    gm = fx.GraphModule(nn.Module(), graph)
    assert lower_(gm) == 2
    assert lower_(gm) == 0
    for value in (torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0])):
        assert torch.equal(gm(value), -value if value.any() else value)
