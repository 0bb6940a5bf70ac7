"""Savings of replacements: counted on graphs, once for each kind of replacement, and additive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.costs import counted
from repl_fx.errors import BadInput
from repl_fx.plan import Plan, Replacement
from repl_fx.planning.replacement_costs import COUNTED, ReplacementCosts
from repl_fx.rewriting.apply import Rewritten
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import CapturedParts
from repl_fx.tracing.parts.part_repeats import find_in_parts
from tests.nets import MlpBlock


def costs_of(model: nn.Module, x: Tensor, *names: str) -> ReplacementCosts:
    return ReplacementCosts(find_in_parts(repl_fx.capture_parts(model, (x,))), in_graphs, names, 0)


def costs_of_graph(gm: fx.GraphModule, x: Tensor, name: str) -> ReplacementCosts:
    parts = CapturedParts.of_graph(gm, ExampleInputs((x,)))
    return ReplacementCosts(find_in_parts(parts, lambda part: ()), in_graphs, (name,), 0)


def in_graphs(plan: Plan, made: Rewritten) -> tuple[nn.Module, nn.Module]:
    return made.graphs[""], made.graphs[""]


def replaced(number: int, surrogate: str = "bottleneck") -> Replacement:
    return Replacement(str(number), "repeat_1", str(number - 1), str(number + 1), surrogate)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The blocks of each plan that was applied."""
    seen: list[tuple[str, ...]] = []
    rewritten = ReplacementCosts.rewritten

    def noted(self: ReplacementCosts, replacements: Sequence[Replacement]) -> Any:
        seen.append(tuple(r.block for r in replacements))
        return rewritten(self, replacements)

    monkeypatch.setattr(ReplacementCosts, "rewritten", noted)
    return seen


def test_savings_add_up_and_one_of_each_kind_is_built(built: list[tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    costs = costs_of(nn.Sequential(*(MlpBlock(8) for _ in range(6))), torch.randn(4, 8), *COUNTED)
    one, other = replaced(2), replaced(4)
    together = {name: costs.saved(one)[name] + costs.saved(other)[name] for name in costs.before}
    assert built == [("2",)]
    assert costs.left((one, other)) == {name: (b - together[name]) / b for name, b in costs.before.items()}
    assert costs.saved(replaced(2, "identity"))["params"] == sum(p.numel() for p in MlpBlock(8).parameters())
    assert built == [("2",), ("2", "4"), ("2",)]


def test_a_tied_block_is_of_another_kind_and_saves_what_leaves(built: list[tuple[str, ...]]) -> None:
    torch.manual_seed(0)
    blocks = [MlpBlock(8) for _ in range(7)]
    blocks[6].fc1.weight = blocks[4].fc1.weight
    costs = costs_of(nn.Sequential(*blocks), torch.randn(4, 8), "params")
    plain, tied = (costs.saved(replaced(i, "identity"))["params"] for i in (2, 4))
    assert plain - tied == blocks[4].fc1.weight.numel()
    assert built == [("2",), ("4",)]


def test_costs_that_are_unknown_are_refused() -> None:
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))
    given, *_, output = graph.graph.nodes
    with graph.graph.inserting_before(output):
        graph.graph.call_function(_item, (given,))
    graph.recompile()
    # Where there are values, the graph is run.
    assert costs_of_graph(graph, torch.randn(2, 4), "flops").before["flops"] == 64
    graph, shapes = graph.to("meta"), torch.randn(2, 4, device="meta")
    with pytest.raises(
        BadInput, match=r"a budget of flops is for models that run on shapes alone, .*give --budget params=…"
    ):
        assert costs_of_graph(graph, shapes, "flops").before
    assert costs_of_graph(graph, shapes, "params").before == {"params": 20}


def _item(x: Tensor) -> bool:
    return bool(x.sum() > 0)


@pytest.mark.parametrize(("name", "trained"), [("flops", False), ("memory", True)])
def test_a_step_of_training_is_measured_where_its_memory_counts(
    name: str, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = costs_of(nn.Sequential(*(MlpBlock(8) for _ in range(4))), torch.randn(2, 8), name)
    assert COUNTED.keys() <= costs.before.keys()
    steps: list[Any] = []
    measure = counted._saved_bytes

    def counting(*given: Any) -> Any:
        steps.append(given)
        return measure(*given)

    monkeypatch.setattr(counted, "_saved_bytes", counting)
    assert costs.saved(replaced(1))[name] > 0
    assert bool(steps) == trained
    assert costs.left([replaced(1)]).keys() == COUNTED.keys()
