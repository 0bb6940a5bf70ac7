"""torch.compile takes a model in place in one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.nets import ConvNet, TokenNet

TOKENS, PICTURES = torch.randn(2, 6, 16), torch.randn(2, 3, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "x", "surrogate"),
    [
        (TokenNet(depth=5), TOKENS, "reuse"),
        (TokenNet(depth=5), TOKENS, "bottleneck"),
        (ConvNet(), PICTURES, "slim"),
        (ConvNet(), PICTURES, "coarse"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_in_place_is_one_graph_to_the_compiler(model: nn.Module, x: Tensor, surrogate: str) -> None:
    result = repl_fx.transform(model, (x,), surrogate=surrogate)
    assert not result.in_place.refusals
    torch.compiler.reset()
    compiled: Any = torch.compile(result.model, backend="aot_eager", fullgraph=True)
    plain, found = result.model(x), compiled(x)
    torch.testing.assert_close(found, plain)
    torch.compiler.reset()
