"""Updates of buffers are left out of a file, or the export is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import ExportError
from repl_fx.export.stateless import drop_updates_
from repl_fx.passes.driver import run_passes


class Counts(nn.Module):
    """Two counters, one of which may be read."""

    calls: Tensor
    sums: Tensor

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.fc = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("sums", torch.zeros(4))
        self.register_buffer("still", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.sums += x.detach().sum(0)
        y: Tensor = self.fc(x) * self.still
        return y + self.sums if self.reads else y


def test_updates_that_no_output_depends_on_are_left_out() -> None:
    model, x = Counts(reads=False), torch.randn(2, 4)
    gm = repl_fx.capture(model, (x,))
    expected = model(x)
    assert len(run_passes(gm, drop_updates_).results[0].changed) == 2 and not drop_updates_(gm).modified
    before = {name: buffer.clone() for name, buffer in gm.named_buffers()}
    assert torch.equal(gm(x), expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in gm.named_buffers())


def test_an_output_that_depends_on_a_change_is_refused() -> None:
    gm = repl_fx.capture(Counts(reads=True), (torch.randn(2, 4),))
    with pytest.raises(ExportError, match="the outputs depend on buffer sums, which each forward changes"):
        drop_updates_(gm)


class _Counting(nn.Module):
    """Counts its calls in a buffer, which its output depends on or not."""

    def __init__(self, *, read: bool) -> None:
        super().__init__()
        self.layer, self.read = nn.Linear(4, 4), read
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        return self.layer(x) * (self.calls if self.read else 1)  # type: ignore[no-any-return]


def test_a_module_whose_output_each_call_changes_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ExportError, match="the outputs depend on buffer calls, which each forward changes"):
        repl_fx.export_onnx(_Counting(read=True), tmp_path / "model.onnx", (x,))
    model = _Counting(read=False)
    repl_fx.export_onnx(model, tmp_path / "model.onnx", (x,))
    assert model.calls == 0
