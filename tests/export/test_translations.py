"""Translations of operators: refusals, and neutral values; test_edges.py has what the files of the others compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from repl_fx.export.translations import _neutral, avg_pool2d, scatter_reduce


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
            lambda: avg_pool2d(_value(1, 1, 5, 5), [2], ceil_mode=True, divisor_override=3),
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
