"""A graph as tables: labels, arguments, parameters and value numbers of its nodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.passes.find_repeats import find_repeats
from repl_fx.tracing.capture import capture


class _Offsets(nn.Module):
    """Each layer takes a tensor that is made for it alone before the first one."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        offsets = [torch.zeros(8) + (0 if self.same else i) for i in range(4)]
        for layer, offset in zip(self.layers, offsets, strict=True):
            x = torch.relu(layer(x) + offset)
        return x


@pytest.mark.parametrize(("same", "found"), [(True, [4]), (False, [])])
def test_values_computed_alike_from_constants_count_as_one(same: bool, found: list[int]) -> None:
    gm = capture(_Offsets(same), (torch.randn(2, 8),))
    assert [len(repeat) for repeat in find_repeats(gm) if not repeat.similar] == found
