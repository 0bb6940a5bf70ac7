"""Attention over other than four dimensions, which the ONNX exporter alone refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import repl_fx


class Attention(nn.Module):
    """Attention of the given number of dimensions before positions and features, with a mask that broadcasts."""

    def __init__(self, lead: tuple[int, ...], masked: bool) -> None:
        super().__init__()
        self.qkv, self.lead = nn.Linear(8, 24), lead
        self.mask = nn.Parameter(torch.randn(lead[-1], 5, 5)) if masked else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, *self.lead, 5, 24).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask, scale=0.3)


@pytest.mark.parametrize(("lead", "masked"), [((), False), ((2, 3), True), ((2, 3), False), ((3,), True)])
def test_attention_of_any_rank_is_exported_with_a_dynamic_batch(
    lead: tuple[int, ...], masked: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Attention(lead, masked) if lead else Flat()
    x = torch.randn(2, *lead, 5, 8)
    gm = repl_fx.capture(model, (x,))
    path = repl_fx.export_onnx(gm, tmp_path / "model.onnx", (x,))
    check = repl_fx.verify_onnx(gm, path, (x,))
    assert check, check.summary()
    assert {row.batch for row in check.rows} == {1, 2, 5}


class Flat(nn.Module):
    """Attention of a batch without heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.mask = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask)
