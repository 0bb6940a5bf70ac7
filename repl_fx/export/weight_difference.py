"""How one tensor of an ONNX file differs from what it should be, in the precision of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

# Of a tensor that the export computes (folded surrogates, merged norms) another machine may round otherwise: each
# number by some units in its last place; or, in sums that cancel, most numbers by a fraction of the largest.
_LAST_PLACES, _OF_LARGEST, _MOST = 8, 32, 0.25
# Numbers that converters to half precision replace by the smallest that they keep.
_HALF_CLIPPED = 1.2e-7
# Of fewer numbers, some may move by chance.
_FEW = 16


@dataclass(frozen=True)
class WeightDifference:
    """A tensor or constant of the file that is not the module's.

    Attributes:
        name: in the file.
        source: of what it should be, in the module or a fresh export of it.
        numbers: how many it has.
        different: how many of them differ.
        max_abs: largest difference; inf where there is none to compute.
        scale: largest number that should be there.
    """

    name: str
    source: str
    numbers: int
    different: int
    max_abs: float
    scale: float

    def __str__(self) -> str:
        of = "" if self.source in (self.name, "") else f" (from {self.source})"
        return (
            f"{self.name}{of}: {self.different} of {self.numbers} numbers, by up to {self.max_abs:.2e} "
            f"at scale {self.scale:.2e}"
        )


def difference_of(name: str, source: str, value: Array, wanted: Array, *, computed: bool) -> WeightDifference | None:
    """Say how a tensor differs from the one it should be, in its own precision; None where it does not.

    Args:
        computed: whether it is computed in the export, where machines may round otherwise.
    """
    expected = cast(wanted, value.dtype)
    if same(value, expected):
        return None
    if value.shape != wanted.shape or value.dtype.kind in "OUS" or expected.dtype.kind in "OUS":
        return WeightDifference(name, source, int(value.size), int(value.size), np.inf, 0.0)
    theirs, ours = value.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((theirs == ours) | (np.isnan(theirs) & np.isnan(ours)), 0.0, np.abs(theirs - ours))
    gap = np.where(np.isnan(gap), np.inf, gap)
    if value.dtype == np.float16 and wanted.dtype != value.dtype:
        gap = np.where(gap <= _HALF_CLIPPED, 0.0, gap)
    largest = float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0))
    if computed and is_floating(expected) and _is_rounding(gap, np.abs(ours), largest, expected.dtype):
        return None
    different = int(np.count_nonzero(gap))
    if not different:
        return None
    return WeightDifference(name, source, int(value.size), different, float(gap.max()), largest)


def _is_rounding(gap: Array, sizes: Array, largest: float, dtype: np.dtype[Any]) -> bool:
    # bfloat16 has no entry among numpy's own kinds.
    last = float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7
    if bool((gap <= _LAST_PLACES * last * sizes).all()):
        return True
    moved = bool(np.count_nonzero(gap) > _MOST * gap.size) and gap.size >= _FEW
    return moved and bool((gap <= _OF_LARGEST * last * largest).all())


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """A floating tensor in the precision of another; any other as it is."""
    if array.dtype == dtype or not (is_floating(array) and is_floating(np.empty(0, dtype))):
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def is_floating(array: Array) -> bool:
    """Tell whether a tensor is of floating numbers, of few bits included."""
    # bfloat16 is no kind of float to numpy.
    return array.dtype.kind == "f" or "float" in array.dtype.name


def is_of(state: Arrays, name: str, array: Array) -> bool:
    """Tell whether a tensor is the one of its name among some."""
    return name in state and same(state[name], array)


def same(a: Array, b: Array) -> bool:
    """Tell whether two tensors are equal, in kind too; NaN is NaN."""
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
