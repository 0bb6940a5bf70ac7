"""Nodes that name a device: at any depth of their arguments, and by the word that autocast takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from repl_fx.graph.devices import is_device, mentions_device
from repl_fx.graph.runtime import enter_autocast

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("value", "device", "same"),
    [
        (CPU, CPU, True),
        (CPU, CUDA, False),
        (CUDA, torch.device("cuda", 1), True),
        (torch.device("cuda", 1), CUDA, True),
        (torch.device("cuda", 0), torch.device("cuda", 1), False),
        ("cpu", CPU, False),
    ],
)
def test_a_device_without_an_index_is_any_of_its_type(value: Any, device: torch.device, same: bool) -> None:
    assert is_device(value, device) is same


def test_a_device_is_found_at_any_depth() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert mentions_device(graph.call_function(torch.zeros, (2,), {"device": CPU}), CPU)
    assert mentions_device(graph.call_function(print, ([x, {"to": [CPU]}],)), CPU)
    assert not mentions_device(graph.call_function(torch.zeros, (2,), {"device": CPU}), CUDA)
    assert not mentions_device(graph.call_function(torch.relu, (x,)), CPU)


def test_autocast_names_its_device_by_a_word() -> None:
    node = fx.Graph().call_function(enter_autocast, ("cpu", torch.bfloat16, True, None))
    assert mentions_device(node, CPU) and not mentions_device(node, CUDA)
