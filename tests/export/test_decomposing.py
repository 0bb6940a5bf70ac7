"""Programs whose operators are written in others are exported without further traces, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_fx._torch import is_composite
from repl_fx.export import onnx_model
from repl_fx.export.decomposing import decompose
from tests.exporting import Exported


class _Does(nn.Module):
    """A network of one function, and a batch norm that has seen data."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.norm = function, nn.BatchNorm1d(6)
        self.norm(torch.randn(32, 6))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


@pytest.fixture
def retraced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each export traced its program again."""
    found: list[bool] = []

    def noting(whole: Callable[..., Any], *given: Any) -> Any:
        found.append(False)

        def noted(*given: Any) -> Any:
            found[-1] = True
            return whole(*given)

        return decompose(noted, *given)

    monkeypatch.setattr(onnx_model, "decompose", noting)
    return found


def _relu_of_a_sum(net: _Does, x: Tensor) -> Tensor:
    y = x + 1
    y.relu_()
    return y * x


@pytest.mark.parametrize(
    "function",
    [
        _relu_of_a_sum,
        lambda net, x: F.linear(x, torch.ones(6, 6)).mul_(2).add_(x, alpha=3),
        lambda net, x: F.hardswish(net.norm(x), inplace=True),
        lambda net, x: F.dropout(x, 0.5, net.training) + 1,
        lambda net, x: F.dropout(net.norm(x), 0.5, net.training, inplace=True) + 1,
        lambda net, x: F.dropout2d((x * 2)[:, :, None, None], 0.5, net.training, inplace=True) + 1,
        lambda net, x: (x.to(torch.float64) * x.to(torch.float32)).to(dtype=torch.float16),
        lambda net, x: x.flatten() + x.reshape(-1),
        lambda net, x: x.view(-1, 2, 3)[:, :, None].flatten(1, -2).flatten(-3, 0),
        lambda net, x: torch.stack([(x > 0) & (x < 1) | (x < -1), x.bool()]),
        lambda net, x: torch.min(x[:, :1].expand_as(x).reshape_as(x.t()), torch.max(x.t(), -x.t())),
        lambda net, x: torch.cat([part * number for number, part in enumerate(x.view(-1, 6).chunk(4, -1))], 1),
        lambda net, x: torch.cat([part.contiguous().t() for part in x.view(-1, 6).split(2, 1)]).narrow(0, 1, 2),
        lambda net, x: x.diff(dim=0).sum() + x.diff(prepend=x[:, :1], append=x.long()),
        lambda net, x: (x.long() // 1).diff(n=1, dim=-1, append=x[:, 1:].long()),
    ],
)
def test_no_other_trace_is_needed(function: Any, retraced: list[bool], tmp_path: Path) -> None:
    file = Exported(_Does(function), tmp_path / "net.onnx", (torch.randn(3, 6),))
    assert file.verify()
    assert retraced == [False]


def _view_of_it_is_read(net: _Does, x: Tensor) -> Tensor:
    y = x * 2
    turned = y.t()
    y.add_(1)
    return turned + 0


def _it_is_read_by_another_name(net: _Does, x: Tensor) -> Tensor:
    y = x * 2
    same = y.type_as(x)
    y.add_(1)
    return same + 0


def _what_it_is_a_view_of_is_read(net: _Does, x: Tensor) -> Tensor:
    y = x * 2
    F.dropout(y, 0.5, False).add_(1)
    return y + 0


def _what_is_the_same_is_written(net: _Does, x: Tensor) -> Tensor:
    y = x * 2
    F.dropout(y, 0.5, False, inplace=True).add_(1)
    return y + 0


def _a_part_of_it_is_written(net: _Does, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].zero_()
    return y + 0


@pytest.mark.parametrize(
    "function",
    [
        _view_of_it_is_read,
        _it_is_read_by_another_name,
        _what_it_is_a_view_of_is_read,
        _what_is_the_same_is_written,
        _a_part_of_it_is_written,
        lambda net, x: (x.double() * 1).add_(1) + (x * 1).add_(x.double()),
        lambda net, x: F.batch_norm(x, None, None, training=True),
        lambda net, x: x.masked_fill_(x > 0, 2.0) + x,
        lambda net, x: torch.complex(x, x).abs(),
        lambda net, x: x.view(-1, 2, 3).diagonal(0, 1, 2) * 2,
        lambda net, x: x.diff(n=2),
        lambda net, x: (x > 0).diff(prepend=x[:, :1] > 1),
    ],
)
def test_what_is_not_written_otherwise_is_traced_as_ever(function: Any, retraced: list[bool], tmp_path: Path) -> None:
    file = Exported(_Does(function), tmp_path / "net.onnx", (torch.randn(3, 6),))
    assert file.verify()
    assert retraced == [True]


def test_a_size_of_nothing_is_no_other_size(retraced: list[bool], tmp_path: Path) -> None:
    net = _Does(lambda net, x: (x.reshape(x.shape[0], 2, x.shape[1] // 2), x.flatten(1)))
    file = Exported(net, tmp_path / "net.onnx", (torch.randn(3, 6),))
    assert retraced == [False]
    parts, whole = onnxruntime.InferenceSession(str(file.path)).run(None, {"x": np.zeros((2, 0), np.float32)})
    assert (parts.shape, whole.shape) == ((2, 2, 0), (2, 0))


def test_operators_made_of_others_are_told() -> None:
    assert is_composite(torch.ops.aten.einsum.default) and not is_composite(torch.ops.aten.mul.Tensor)
