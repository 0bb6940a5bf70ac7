"""The facts of single nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from repl_fx.reporting.model_graph.node_facts import kind_of_node, label_of, source_of, target_of, value_of


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.ops.aten.mul.Tensor(self.layer(x), self.scale)


def test_kinds_labels_and_targets() -> None:
    gm = fx.symbolic_trace(_Small())
    found = [(kind_of_node(gm, node), label_of(gm, node), target_of(node)) for node in gm.graph.nodes]
    assert found == [
        ("input", "x", "x"),
        ("layer", "layer", "layer"),
        ("parameter", "scale", "scale"),
        ("operator", "mul", "aten.mul.Tensor"),
        ("output", "output", "output"),
    ]


def test_a_layer_with_a_number_for_a_name_has_that_of_its_class() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    assert [label_of(gm, node) for node in gm.graph.nodes] == ["input", "ReLU", "output"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(2, 3), "2×3 float32"),
        (torch.zeros(()), "float32"),
        ((torch.zeros(2), [torch.zeros(1)]), "(2 float32, (1 float32))"),
        ([torch.zeros(1)] * 9, "(1 float32, 1 float32, 1 float32, 1 float32, …)"),
        (3, "int"),
        (None, ""),
    ],
)
def test_values_in_words(value: object, text: str) -> None:
    node = fx.Graph().placeholder("x")
    node.meta["val"] = value
    assert value_of(node).text == text


def test_source_is_the_innermost_line_below_an_import_path() -> None:
    node = fx.Graph().placeholder("x")
    assert source_of(node) is None
    node.meta["stack_trace"] = (
        f'  File "{torch.__file__}", line 7, in forward\n    x\n'
        '  File "/elsewhere/torch/nn/modules/container.py", line 9, in forward\n    y\n'
    )
    assert source_of(node) == "torch/__init__.py:7"
