"""How far an array that ONNX Runtime computed is from the tensor that PyTorch computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repl_fx.graph.kinds import dtype_name


@dataclass(frozen=True)
class Tolerance:
    """The distance that two numbers may lie apart: |onnx - torch| <= atol * scale + rtol * |torch|.

    Attributes:
        rtol: relative to each number.
        atol: relative to the scale of its output (see `_scale`): a sum that cancels to nearly 0 keeps the rounding of
            its terms, so the error of a small number goes with the size of its neighbours, not with its own.
    """

    rtol: float
    atol: float


# Ten times the largest difference measured, as a fraction of the output's scale, at three batch sizes each, with random
# weights: ResNet-18/50/152, ViT of 12 and 24 layers, MobileNetV3, EfficientNet-B2, ConvNeXt, BERT, GPT-2, Llama and T5
# in float32; linear layers in float64, as ONNX Runtime has little more of it on the CPU; ResNet-18 and ViT in float16.
#     float64 1.2e-15    float32 1.4e-6    float16 1.6e-3
# Both runtimes sum in the same precision but in another order, so a difference is some tens of roundings and grows
# slowly with depth; the relative part only allows for the last rounding. Integers and bools have none and must be
# equal. ONNX Runtime has no bfloat16 on the CPU.
TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(rtol=1e-15, atol=1.5e-14),
    torch.float32: Tolerance(rtol=1e-6, atol=1.5e-5),
    torch.float16: Tolerance(rtol=1e-3, atol=1.5e-2),
}

# Of double outputs that do not agree to the last digits: an attribute of an ONNX operator (the epsilon of a norm, the
# slope of an activation) is single, 6e-8 from the number in the model, and a result some times that from the model's.
IN_DOUBLE = Tolerance(rtol=1e-6, atol=1e-6)

# How many times PyTorch's own rounding the two may lie apart: the file's result may be up to twice as far from the
# exact one as PyTorch's is. And the most that is believed to be rounding, as a fraction of the scale.
_ROUNDINGS = 3.0
MOST_ROUNDING: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.float16: 1e-1}

# Further from the middle of an output than this, a number is a mask's fill value (-1e9), not a size that says how large
# the rounding of the others may be.
_FILL_FACTOR = 1e3


@dataclass(frozen=True)
class Difference:
    """One output for inputs of some sizes: how far ONNX Runtime is from PyTorch.

    Attributes:
        output: name of the output.
        batch: batch size of the inputs.
        dtype: of the output, such as "float32".
        count: how many numbers were compared.
        max_abs, mean_abs, median_abs: of |onnx - torch| over all numbers that are finite in both; inf when none is.
        max_rel: largest |onnx - torch| / |torch|, where |torch| counts as no less than a thousandth of `scale`.
        scale: size of the numbers in the PyTorch output; the absolute tolerance is a fraction of it.
        cosine: of the two outputs as vectors, -1.0 for opposite ones; 1.0 for two zero vectors.
        top1_agreement: share of rows (last dimension) with the same largest entry, ties within the tolerance counted as
            the same; None where there are no classes to choose from.
        finite_torch, finite_onnx: whether all numbers are; equal infinities pass, NaN never does.
        rtol, atol: the tolerance applied, `atol` as a fraction of `scale`; both 0 for integers and bools.
        passed: whether every number is within the tolerance.
        sizes: other sizes than the example's besides the batch: `height 32, width 48`.
    """

    output: str
    batch: int
    dtype: str
    count: int
    max_abs: float
    mean_abs: float
    median_abs: float
    max_rel: float
    scale: float
    cosine: float
    top1_agreement: float | None
    finite_torch: bool
    finite_onnx: bool
    rtol: float
    atol: float
    passed: bool
    sizes: str = ""

    @property
    def at(self) -> str:
        """The sizes of the inputs."""
        return at_sizes(self.batch, self.sizes)

    def __str__(self) -> str:
        verdict = "equal" if self.passed else "DIFFERS"
        finite = "" if self.finite_torch and self.finite_onnx else ", not all finite"
        return (
            f"{self.output} at {self.at}: {verdict}, max |difference| {self.max_abs:.2e} "
            f"at scale {self.scale:.2e}, cosine {self.cosine:.8f}{finite}"
        )


def at_sizes(batch: int, sizes: str) -> str:
    """The batch and other sizes of inputs, in words."""
    return ", ".join(filter(None, (f"batch {batch}", sizes)))


def tolerance_for(dtype: torch.dtype, rtol: float | None = None, atol: float | None = None) -> Tolerance:
    """Return the tolerance for outputs of this dtype: that of `TOLERANCES`, but for what is given; none for integers.

    Raises:
        KeyError: a floating dtype that `TOLERANCES` has not.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return Tolerance(0.0, 0.0)
    default = TOLERANCES[dtype.to_real()]
    return Tolerance(default.rtol if rtol is None else rtol, default.atol if atol is None else atol)


def widened(tolerance: Tolerance, expected: Tensor, exact: Tensor) -> Tolerance:
    """The tolerance for an output in which rounding grows more than in the models that `TOLERANCES` were measured on.

    Args:
        tolerance: that of `TOLERANCES`.
        expected, exact: the results of PyTorch, in single or half precision and in double.

    Returns:
        One with an absolute part of three times the rounding seen, where that is more; the same where it is less, or
        too much to be rounding.
    """
    ours, theirs = expected.double(), exact.double()
    finite = ours.isfinite() & theirs.isfinite()
    if not bool(finite.any()):
        return tolerance
    scale = _scale(ours[finite].abs().numpy())
    atol = _ROUNDINGS * float((ours - theirs)[finite].abs().max()) / scale
    believed = tolerance.atol < atol <= MOST_ROUNDING[expected.dtype]
    return Tolerance(tolerance.rtol, atol) if believed else tolerance


def measure(
    name: str, batch: int, expected: Tensor, value: np.ndarray[Any, Any], tolerance: Tolerance, sizes: str = ""
) -> Difference:
    """Compare two results of one shape and dtype.

    Args:
        name, batch, sizes: of the output, and of the inputs.
        expected, value: the results of PyTorch, on the CPU, and of ONNX Runtime.
        tolerance: see `tolerance_for`.
    """
    floating = expected.is_floating_point() or expected.is_complex()
    # float16 and integers in float64 lose nothing below 2^53; above, the exact comparison is made on the integers.
    exact = np.complex128 if expected.is_complex() else np.float64
    theirs, ours = value.astype(exact), expected.numpy().astype(exact)
    finite = np.isfinite(theirs) & np.isfinite(ours)
    scale = _scale(np.abs(ours[finite]))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(finite, np.abs(theirs - ours), 0.0)
        size = np.where(finite, np.abs(ours), 0.0)
        allowed = tolerance.atol * scale + tolerance.rtol * size
        within = (gap <= allowed) if floating else (value == expected.numpy())
    # Infinities of the same sign are equal (masks are full of them); NaN equals nothing, itself included.
    passed = bool(np.all(np.where(finite, within, theirs == ours)))
    gaps, extents = gap[finite], size[finite]
    if not gaps.size:
        # No difference can be computed: none for an empty output, infinity for NaN.
        gaps, extents = np.array([math.inf if ours.size else 0.0]), np.ones(1)
    return Difference(
        output=name,
        batch=batch,
        dtype=dtype_name(expected.dtype),
        count=int(ours.size),
        max_abs=float(gaps.max()),
        mean_abs=float(gaps.mean()),
        median_abs=float(np.median(gaps)),
        max_rel=float((gaps / np.maximum(extents, 1e-3 * scale)).max()),
        scale=scale,
        cosine=_cosine(theirs[finite], ours[finite]),
        top1_agreement=_top1(theirs, ours, allowed) if floating and not expected.is_complex() else None,
        finite_torch=bool(np.isfinite(ours).all()),
        finite_onnx=bool(np.isfinite(theirs).all()),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        passed=passed,
        sizes=sizes,
    )


def _scale(sizes: np.ndarray[Any, Any]) -> float:
    """The largest absolute value that is no fill value; 1 for an output of zeros, which has no size of its own."""
    nonzero = sizes[sizes > 0]
    if not nonzero.size:
        return 1.0
    return float(nonzero[nonzero <= _FILL_FACTOR * np.median(nonzero)].max())


def _cosine(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any]) -> float:
    # Divided first, or the squares of float32's largest values would overflow even float64's sums of them.
    largest = max(float(np.abs(theirs).max(initial=0.0)), float(np.abs(ours).max(initial=0.0)))
    if largest == 0.0:
        return 1.0
    theirs, ours = theirs / largest, ours / largest
    norms = float(np.linalg.norm(theirs) * np.linalg.norm(ours))
    return max(-1.0, min(1.0, float(np.vdot(theirs, ours).real) / norms)) if norms else 0.0


def _top1(theirs: np.ndarray[Any, Any], ours: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any]) -> float | None:
    if not ours.ndim or ours.shape[-1] < 2 or not ours.size:
        return None
    chosen = theirs.argmax(-1, keepdims=True)
    best = ours.argmax(-1, keepdims=True)
    # Two entries may each move by the tolerance, towards each other.
    slack = np.take_along_axis(allowed, chosen, -1) + np.take_along_axis(allowed, best, -1)
    with np.errstate(invalid="ignore"):
        gap = np.take_along_axis(ours, best, -1) - np.take_along_axis(ours, chosen, -1)
    return float(np.mean((chosen == best) | (gap <= slack)))
