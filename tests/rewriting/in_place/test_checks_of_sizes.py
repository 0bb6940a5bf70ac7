"""Checks of sizes that surrogates make in the place of their blocks' code."""

from __future__ import annotations

import pytest
import torch

import repl_fx
from repl_fx.errors import BadInput


def test_windows_of_a_rounded_size_have_their_place_and_the_way_of_other_blocks_is_checked() -> None:
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], 8, [2, 2, 6], [1, 1, 1], [7, 7])
    result = repl_fx.transform(model, (torch.randn(2, 3, 96, 96),), surrogate="bottleneck")
    assert result.in_place.model is not None, [str(refusal) for refusal in result.in_place.refusals]
    graph, place = result.graph_module.eval(), result.model.eval()
    for size in (96, 101, 40, 300):
        x = torch.randn(1, 3, size, size)
        if size in (96, 101):
            assert torch.equal(graph(x), place(x))
            continue
        for form in (graph, place):
            with pytest.raises(BadInput, match="goes another way"):
                form(x)
