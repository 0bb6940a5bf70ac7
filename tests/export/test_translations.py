"""Translations of operators: refusals, and neutral values; test_edges.py has what the files of the others compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import flatten_inputs
from repl_fx.export.translations import _neutral, avg_pool, scatter_reduce
from repl_fx.running.example_inputs import ExampleInputs
from tests.exporting import Exported


def _value(*shape: int, dtype: ir.DataType = ir.DataType.FLOAT) -> Any:
    return SimpleNamespace(shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    ("translate", "message"),
    [
        (lambda: scatter_reduce(_value(), 0, _value(), _value(), "sum"), "a tensor without dimensions"),
        (
            lambda: scatter_reduce(_value(2, dtype=ir.DataType.INT64), 0, _value(2), _value(2), "mean"),
            "the mean of integers",
        ),
        (
            lambda: avg_pool(2)(_value(1, 1, 5, 5), [2], ceil_mode=True, divisor_override=3),
            "ceil_mode and divisor_override",
        ),
    ],
)
def test_what_has_no_translation_is_refused(translate: Callable[[], Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        translate()


@pytest.mark.parametrize(
    ("reduce", "dtype", "value"),
    [
        ("prod", ir.DataType.INT8, 1),
        ("amin", ir.DataType.FLOAT, math.inf),
        ("amax", ir.DataType.FLOAT16, -math.inf),
        ("amin", ir.DataType.INT8, 127),
        ("amax", ir.DataType.INT32, -(2**31)),
    ],
)
def test_neutral_values_change_no_reduction(reduce: str, dtype: ir.DataType, value: float) -> None:
    assert _neutral(reduce, dtype) == value


@pytest.mark.parametrize(
    ("pool", "sizes"),
    [
        (nn.AdaptiveAvgPool1d(3), (8,)),
        (nn.AdaptiveAvgPool2d((2, 3)), (8, 6)),
        (nn.AdaptiveAvgPool2d((None, 2)), (8, 6)),
        (nn.AdaptiveAvgPool3d((2, 3, 1)), (8, 6, 4)),
        (nn.AdaptiveMaxPool1d(3), (8,)),
        (nn.AdaptiveMaxPool2d((2, 3), return_indices=True), (8, 6)),
        (nn.AdaptiveMaxPool3d(2), (8, 6, 4)),
    ],
    ids=str,
)
def test_windows_that_adapt_are_those_of_the_size_that_comes(
    pool: nn.Module, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    args = (torch.randn(2, 3, *sizes),)
    gm = repl_fx.capture(nn.Sequential(pool), args)
    # At one smaller and one larger size, which are no multiples of the windows.
    check = Exported(gm, tmp_path / "pool.onnx", args).verify()
    assert check and len({row.sizes for row in check.rows}) == 3, check.summary()


class _Scattered(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        return x.scatter_reduce(1, index, x, "sum", include_self=False), x.scatter_reduce(1, index, x, "mean")


def test_infinite_values_are_scattered(tmp_path: Path) -> None:
    index = torch.tensor([[0, 1, 0, 3], [2, 2, 2, 0]])
    args = torch.tensor([[1.0, math.inf, 3.0, 4.0], [5.0, 6.0, -math.inf, 7.0]]), index
    gm = repl_fx.capture(_Scattered(), args)
    given = flatten_inputs(gm, ExampleInputs(args))
    made = OnnxSession(Exported(gm, tmp_path / "scattered.onnx", args).path).run(given)
    for tensor, wanted in zip(made.values(), gm(*args), strict=True):
        np.testing.assert_allclose(tensor, wanted, rtol=1e-6)


class _Indexed(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        y = x.new_zeros(x.shape[0], 9)
        largest = y.scatter_reduce(1, index, x, "amax", include_self=False)
        return y.scatter(1, index, x), y.scatter_add(1, index, x), largest


def test_values_without_an_index_are_left_aside(tmp_path: Path) -> None:
    args = torch.randn(3, 5), torch.arange(15).reshape(3, 5) % 7
    gm = repl_fx.capture(_Indexed(), args)
    path = Exported(gm, tmp_path / "scattered.onnx", args).path
    fewer = args[0], args[1][:2, :4].contiguous()
    made = OnnxSession(path).run(flatten_inputs(gm, ExampleInputs(fewer)))
    for tensor, wanted in zip(made.values(), gm(*fewer), strict=True):
        np.testing.assert_allclose(tensor, wanted)


class _ByWidth(nn.Module):
    def forward(self, places: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return places % x.shape[1], places // x.shape[1], x[places % x.shape[0]], x % x.shape[1]


def test_places_are_divided_by_sizes_that_stay_free(tmp_path: Path) -> None:
    args = torch.arange(-6, 14).reshape(2, 10), torch.randn(3, 4)
    check = Exported(repl_fx.capture(_ByWidth(), args), tmp_path / "m.onnx", args).verify()
    assert check, check.summary()
    assert len({row.at for row in check.rows}) > 3


class _Packed(nn.Module):
    """Weights of four bits, and outputs of the dtypes in which the exporter computes otherwise."""

    def forward(self, x: Tensor, packed: Tensor) -> dict[str, Tensor]:
        return {
            "unpacked": torch.stack([packed >> 4, (packed << 4) >> 4], -1),
            "any": packed.any(1),
            "sum": x.sum(1),
            "largest": x.abs().amax(1),
        }


def test_outputs_have_the_dtypes_of_the_model(tmp_path: Path) -> None:
    given = torch.randn(2, 3).half(), torch.tensor([[200, 3, 255], [0, 127, 128]], dtype=torch.uint8)
    gm = repl_fx.capture(_Packed(), given)
    repl_fx.export_onnx(gm, tmp_path / "m.onnx", given)
    found = OnnxSession(tmp_path / "m.onnx").run(flatten_inputs(gm, ExampleInputs(given)))
    for name, wanted in gm(*given).items():
        assert found[name].dtype == wanted.numpy().dtype
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=2e-3)


class _Quotients(nn.Module):
    def forward(self, n: Tensor) -> Tensor:
        by = torch.full_like(n, -3)
        modes = ("trunc", "floor")
        return torch.stack([torch.div(n, other, rounding_mode=mode) for other in (by, 7) for mode in modes])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_quotients_of_large_integers_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    given = (torch.tensor([[2**31 - 1, -(2**31) + 1, 2**24 + 1], [-7, 7, 0]], dtype=dtype),)
    gm = repl_fx.capture(_Quotients(), given)
    repl_fx.export_onnx(gm, tmp_path / "m.onnx", given)
    (found,) = OnnxSession(tmp_path / "m.onnx").run(flatten_inputs(gm, ExampleInputs(given))).values()
    np.testing.assert_array_equal(found, gm(*given).numpy(), strict=True)
