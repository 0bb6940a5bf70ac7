"""Compiling block by block: blocks of one kind once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.compiler.config
from torch import fx

import repl_fx
from repl_fx.training.compiling import compile_
from repl_fx.training.sharding import units_of
from tests.nets import TokenNet


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["blend", "bottleneck"])
# Dynamo asks for the gradients of a block's inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_of_one_kind_and_surrogates_are_compiled_once(surrogate: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    result = repl_fx.transform(TokenNet(depth=5), (x,), surrogate=surrogate)
    model, graph = result.model, result.graph_module
    made: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        made.append(gm)
        return gm.forward

    wanted = copy.deepcopy(model)(x)
    settings: Any = torch.compiler.config
    # Fewer than there are kinds of blocks.
    with settings.patch(recompile_limit=2):
        assert compile_(model, backend=backend) == 5 == len(units_of(model))
        torch.testing.assert_close(model(x), wanted)
        assert len(made) == 1 + 1
        model(x).sum().backward()
        assert len(made) == 1 + 1
        assert compile_(graph, backend=backend) == 1
        torch.testing.assert_close(graph(x), wanted)
        assert len(made) == 1 + 1 + 1
    torch.compiler.reset()
