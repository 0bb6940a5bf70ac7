"""Operators that the exporter translates into something else at the edges of what they are defined for.

    aten.squeeze.dim(x, 1), x of (2, 3)    ->  Identity(x)             the exporter: Squeeze, which is no valid node
    aten.mean.dim(int64, dtype=float32)    ->  ReduceMean(Cast(x))     the exporter: Cast(ReduceMean(x)), cut off first
    aten.log_sigmoid(-100)                 ->  -100                    the exporter: Log(Sigmoid(x)), -inf

Each translation computes what PyTorch computes, signed zeros and infinities included; what it cannot translate it
refuses.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript.function_libs.torch_lib.ops import core
from onnxscript.onnx_opset import opset18

aten = torch.ops.aten
# Its annotations are those of arrays; in a translation it takes and returns values of the graph.
op: Any = opset18


def _constant(value: float, like: Any) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=like.dtype))


def _is_integer(value: Any) -> bool:
    return bool(value.dtype.is_integer())


def squeeze_dims(self: Any, dim: Sequence[int]) -> Any:
    """Only dimensions of size 1 go; a size that is not fixed is no 1, as the trace took it for another."""
    rank = len(self.shape)
    going = sorted({d % rank for d in dim if rank and self.shape[d] == 1})
    return op.Squeeze(self, op.Constant(value_ints=going)) if going else op.Identity(self)


def mean_dim(self: Any, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: int = -1) -> Any:
    """The mean of the values in the type of the result."""
    # A cast has no shape yet.
    rank = len(self.shape)
    if dtype not in (-1, None):
        self = op.Cast(self, to=dtype)
    if not rank:
        return op.Identity(self)
    return op.ReduceMean(self, op.Constant(value_ints=list(dim or range(rank))), keepdims=keepdim)


def softmax_by(kind: Any) -> Callable[..., Any]:
    """The softmax, or its logarithm, of the values in the type of the result."""

    def softmax(self: Any, dim: int, dtype: int = -1) -> Any:
        rank = len(self.shape)
        if dtype not in (-1, None):
            self = op.Cast(self, to=dtype)
        if rank:
            return kind(self, axis=dim)
        return op.Squeeze(kind(op.Unsqueeze(self, op.Constant(value_ints=[0])), axis=0))

    return softmax


def log_of_sum(base: float) -> Callable[[Any, Any], Any]:
    """The logarithm of base^a + base^b, to that base, without an overflow."""

    def logaddexp(self: Any, other: Any) -> Any:
        scale = _constant(math.log(base), self)
        apart = op.Neg(op.Abs(op.Sub(self, other)))
        # Equal infinities have no difference.
        apart = op.Where(op.Equal(self, other), _constant(0.0, self), apart)
        added = op.Log(op.Add(_constant(1.0, self), op.Exp(op.Mul(apart, scale))))
        return op.Add(op.Max(self, other), op.Div(added, scale))

    return logaddexp


def log_sigmoid(self: Any) -> Any:
    """min(x, 0) - log(1 + exp(-|x|)), which has no underflow."""
    rest = op.Log(op.Add(_constant(1.0, self), op.Exp(op.Neg(op.Abs(self)))))
    return op.Sub(op.Min(self, _constant(0.0, self)), rest)


def _is_negative(value: Any) -> Any:
    """Tell whether the sign is set, that of -0.0 included, whose reciprocal is -inf."""
    zero = _constant(0.0, value)
    return op.Or(
        op.Less(value, zero), op.And(op.Equal(value, zero), op.Less(op.Div(_constant(1.0, value), value), zero))
    )


def signbit(self: Any) -> Any:
    """Tell whether the sign is set."""
    if self.dtype == ir.DataType.BOOL:
        return op.And(self, op.Not(self))
    return op.Less(self, _constant(0, self)) if _is_integer(self) else _is_negative(self)


def atan2(self: Any, other: Any) -> Any:
    """The angle of (other, self), by the signs of both: on the axes, and for zeros, as well."""
    zero, pi, half = (_constant(value, self) for value in (0.0, math.pi, math.pi / 2))
    magnitude = op.Atan(op.Div(op.Abs(self), op.Abs(other)))
    still = op.And(op.Equal(self, zero), op.Equal(other, zero))
    magnitude = op.Where(still, zero, magnitude)
    endless = op.And(op.IsInf(self), op.IsInf(other))
    magnitude = op.Where(endless, op.Div(half, _constant(2.0, self)), magnitude)
    turned = op.Where(_is_negative(other), op.Sub(pi, magnitude), magnitude)
    return op.Where(_is_negative(self), op.Neg(turned), turned)


def same_integers(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A rounding, which leaves integers as they are; ONNX has it for floating values alone."""

    def rounded(self: Any) -> Any:
        return op.Identity(self) if _is_integer(self) else kind(self)

    return rounded


def trunc(self: Any) -> Any:
    """Towards zero; of floating values."""
    return op.Where(op.Less(self, _constant(0.0, self)), op.Ceil(self), op.Floor(self))


def relu(self: Any) -> Any:
    """The larger of x and 0; ONNX Runtime has no Relu for all integers."""
    return op.Max(self, _constant(0, self)) if _is_integer(self) else op.Relu(self)


def where(condition: Any, self: Any, other: Any) -> Any:
    """A choice; of truths by logic, as ONNX Runtime has none for them."""
    if ir.DataType.BOOL in (self.dtype, other.dtype):
        return op.Or(op.And(condition, self), op.And(op.Not(condition), other))
    return op.Where(condition, self, other)


def _up_to(index: Any, src: Any) -> Any:
    """The values that have an index: torch takes more along any dimension, and leaves them aside."""
    longer = [dim for dim, size in enumerate(src.shape) if size != index.shape[dim]]
    if not longer:
        return src
    axes = op.Constant(value_ints=longer)
    return op.Slice(src, op.Constant(value_ints=[0] * len(longer)), op.Gather(op.Shape(index), axes), axes)


def scatter(self: Any, dim: int, index: Any, src: Any, reduction: str = "none") -> Any:
    """Values put or added where their indices say."""
    return op.ScatterElements(self, index, _up_to(index, src), axis=dim, reduction=reduction)


def scatter_reduce(self: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    """Values scattered and reduced; the exporter's own takes the last for the mean."""
    if not len(self.shape):
        raise NotImplementedError("scatter_reduce of a tensor without dimensions has no translation to ONNX")
    if reduce == "mean" and _is_integer(self):
        raise NotImplementedError("scatter_reduce with the mean of integers has no translation to ONNX")
    dtype, src = src.dtype, _up_to(index, src)

    def filled(value: float) -> Any:
        return op.Expand(op.Constant(value=ir.tensor(value, dtype=dtype)), op.Shape(src))

    base = self if include_self else op.ScatterElements(self, index, filled(_neutral(reduce, dtype)), axis=dim)
    made = op.ScatterElements(base, index, src, axis=dim, reduction=_REDUCTIONS[reduce])
    if reduce != "mean":
        return made
    counted = op.Expand(_constant(1, self), op.Shape(self))
    if not include_self:
        counted = op.ScatterElements(counted, index, filled(0), axis=dim)
    return op.Div(made, op.ScatterElements(counted, index, filled(1), axis=dim, reduction="add"))


_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amin": "min", "amax": "max"}


def _neutral(reduce: str, dtype: ir.DataType) -> float:
    if reduce in ("sum", "mean", "prod"):
        return int(reduce == "prod")
    if dtype.is_floating_point():
        return math.inf if reduce == "amin" else -math.inf
    bounds = torch.iinfo(getattr(torch, dtype.name.lower()))
    return bounds.max if reduce == "amin" else bounds.min


def sort_stable(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """TopK of all: of equal values, that with the lower index comes first."""
    if not len(self.shape):
        return op.Identity(self), op.Constant(value_int=0)
    axis = dim % len(self.shape)
    size = op.Shape(self, start=axis, end=axis + 1)
    values, indices = op.TopK(self, size, axis=axis, largest=descending, sorted=True)
    return values, indices


def avg_pool(rank: int) -> Callable[..., Any]:
    """The average of windows of so many dimensions; with a divisor of its own, the sum divided by that."""

    def average(
        self: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        if ceil_mode and divisor_override is not None:
            raise NotImplementedError("avg_pool with ceil_mode and divisor_override has no translation to ONNX")
        each = [s if len(s) == rank else [*s] * rank for s in (kernel_size, stride or kernel_size, padding)]
        unbatched = len(self.shape) == rank + 1
        if unbatched:
            self = op.Unsqueeze(self, op.Constant(value_ints=[0]))
        result = op.AveragePool(
            self,
            kernel_shape=each[0],
            strides=each[1],
            pads=[*each[2], *each[2]],
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad or divisor_override is not None,
        )
        if divisor_override is not None:
            result = op.Mul(result, _constant(math.prod(each[0]) / divisor_override, self))
        return op.Squeeze(result, op.Constant(value_ints=[0])) if unbatched else result

    return average


def adaptive_avg_pool(self: Any, output_size: Sequence[Any]) -> Any:
    """The average of as many windows as are asked for along each of the last dimensions, for any size of these.

    The exporter takes the windows of the example. Here those along one dimension are a matrix product, whose rows have
    the windows; values that are not finite are NaN in other windows, too.
    """
    rank, spatial = len(self.shape), range(-len(output_size), 0)
    if all(size == 1 for size in output_size):
        return op.ReduceMean(self, op.Constant(value_ints=list(spatial)))
    made = self
    for axis, count in zip(spatial, output_size, strict=True):
        inside, sizes = _windows(self, rank + axis, count)
        windows = op.Div(op.Cast(inside, to=self.dtype), op.Cast(sizes, to=self.dtype))
        order = list(range(rank))
        order[axis], order[-1] = order[-1], order[axis]
        made = op.Transpose(op.MatMul(op.Transpose(made, perm=order), op.Transpose(windows, perm=[1, 0])), perm=order)
    return made


def adaptive_max_pool(self: Any, output_size: Sequence[int]) -> tuple[Any, Any]:
    """Likewise the largest values, and where they are among all of the last dimensions."""
    lead = len(self.shape) - len(output_size)
    inside, windows = None, 1
    for dim, count in enumerate(output_size, start=lead):
        along, _ = _windows(self, dim, count)
        windows *= count
        if inside is None:
            inside = along
        else:
            before, after = op.Constant(value_ints=[1, 3]), op.Constant(value_ints=[0, 2])
            both = op.And(op.Unsqueeze(inside, before), op.Unsqueeze(along, after))
            inside = op.Reshape(both, op.Constant(value_ints=[windows, -1]))
    flat = op.Reshape(self, op.Constant(value_ints=[*[0] * lead, 1, -1]))
    each = op.Where(inside, flat, _constant(-math.inf, self))
    shape = op.Constant(value_ints=[*[0] * lead, *output_size])
    largest = op.ReduceMax(each, op.Constant(value_ints=[-1]), keepdims=0)
    return op.Reshape(largest, shape), op.Reshape(op.ArgMax(each, axis=-1, keepdims=0), shape)


def _windows(value: Any, dim: int, count: Any) -> tuple[Any, Any]:
    """The elements along a dimension in each of so many windows, (count, size), and their sizes (count, 1)."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    size = op.Squeeze(op.Shape(value, start=dim, end=dim + 1))
    counted = op.Constant(value_int=count) if isinstance(count, int) else op.Squeeze(count)
    number = op.Unsqueeze(op.Range(zero, counted, one), op.Constant(value_ints=[1]))
    start = op.Div(op.Mul(number, size), counted)
    # Rounded up.
    end = op.Div(op.Add(op.Mul(op.Add(number, one), size), op.Sub(counted, one)), counted)
    place = op.Range(zero, size, one)
    return op.And(op.GreaterOrEqual(place, start), op.Less(place, end)), op.Sub(end, start)


def power(self: Any, exponent: float) -> Any:
    """A power; of integers by multiplication, as ONNX Runtime takes a floating one, exact up to 2^53."""
    if _is_integer(self) and not isinstance(exponent, int):
        return op.Pow(op.Cast(self, to=ir.DataType.FLOAT), ir.tensor(exponent, dtype=ir.DataType.FLOAT))
    if not _is_integer(self) or not 1 <= exponent <= 64:
        return op.Pow(self, ir.tensor(exponent, dtype=self.dtype))
    result, square = None, self
    while exponent:
        if exponent % 2:
            result = square if result is None else op.Mul(result, square)
        exponent //= 2
        square = op.Mul(square, square) if exponent else square
    return op.Identity(self) if result is self else result


def recurrent(activation: str) -> Callable[..., Any]:
    """A plain recurrent layer; the exporter has none, and would write a node for each step of the example."""

    def rnn(
        self: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        ways, each = 2 if bidirectional else 1, 4 if has_biases else 2
        first = op.Constant(value_ints=[0])
        made, states = op.Transpose(self, perm=[1, 0, 2]) if batch_first else self, []
        for layer in range(0, num_layers * ways, ways):
            own = [params[way * each : (way + 1) * each] for way in range(layer, layer + ways)]
            inner, outer = (op.Concat(*(op.Unsqueeze(p[i], first) for p in own), axis=0) for i in (0, 1))
            biases = [op.Unsqueeze(op.Concat(*p[2:], axis=0), first) for p in own if has_biases]
            ends = (op.Constant(value_ints=[place]) for place in (layer, layer + ways, 0))
            made, state = op.RNN(
                made,
                inner,
                outer,
                op.Concat(*biases, axis=0) if biases else None,
                None,
                op.Slice(hx, *ends),
                hidden_size=hx.shape[2],
                direction="bidirectional" if bidirectional else "forward",
                activations=[activation] * ways,
            )
            made = op.Reshape(op.Transpose(made, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
            states.append(state)
        return op.Transpose(made, perm=[1, 0, 2]) if batch_first else made, op.Concat(*states, axis=0)

    return rnn


def scalar_tensor(s: Any, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    """A tensor of one number; one of Python's is not rounded to float32 first, as the exporter's constants are."""
    kind = ir.DataType.FLOAT if dtype in (-1, None) else ir.DataType(dtype)
    return op.Constant(value=ir.tensor(s, dtype=kind)) if isinstance(s, (bool, int, float)) else op.Cast(s, to=kind)


def floor_divided(self: Any, other: Any) -> Any:
    """A quotient of sizes, rounded down: of negative ones too, as in -(-size // 2); the exporter's own goes to zero."""
    if any(getattr(value, "dtype", None) is ir.DataType.FLOAT for value in (self, other)):
        return op.Floor(op.Div(self, other))
    return op.Div(op.Sub(self, op.Mod(self, other)), other)


def rounded_quotient(self: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """A quotient that is rounded; of integers by integers, as float32, which the exporter takes, has none from 2^24."""
    dtype = _dtype_of(self, other)
    if dtype.is_floating_point() and rounding_mode == "floor":
        # As torch does: 0.7 is no half number.
        precise = ir.DataType.FLOAT if dtype is ir.DataType.FLOAT16 else dtype
        made = _floating_floor(_as_dtype(self, precise), _as_dtype(other, precise), precise)
        return made if precise is dtype else op.Cast(made, to=dtype)
    if rounding_mode is None or isinstance(other, float) or dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return core.aten_div_mode(self, other, rounding_mode)
    dividend, divisor = _as_dtype(self, dtype), _as_dtype(other, dtype)
    quotient, zero = op.Div(dividend, divisor), _number(0, dtype)
    if rounding_mode == "trunc":
        return quotient
    rest = op.Sub(dividend, op.Mul(quotient, divisor))
    apart = op.Xor(op.Less(rest, zero), op.Less(divisor, zero))
    return op.Sub(quotient, op.Cast(op.And(apart, op.Not(op.Equal(rest, zero))), to=dtype))


def floor_divide(self: Any, other: Any) -> Any:
    """A quotient rounded down, of a tensor and a number either way round."""
    return rounded_quotient(self, other, "floor")


def remainder(self: Any, other: Any) -> Any:
    """The rest of a division, with the sign of the divisor; the exporter's has the rounding error of the quotient."""
    dtype = _dtype_of(self, other)
    dividend, divisor = _as_dtype(self, dtype), _as_dtype(other, dtype)
    if not dtype.is_floating_point():
        return op.Mod(dividend, divisor)
    rest, apart = _rest(dividend, divisor, dtype)
    return op.Where(apart, op.Add(rest, divisor), rest)


def _dtype_of(self: Any, other: Any) -> ir.DataType:
    """The dtype of two tensors, or of one beside a number or size: that of the first that has a note of it."""
    found: ir.DataType = next(each.dtype for each in (self, other) if getattr(each, "dtype", None) is not None)
    return found


def _as_dtype(number: Any, dtype: ir.DataType) -> Any:
    if not isinstance(number, ir.Value):
        return _number(number, dtype)
    return number if number.dtype is dtype else op.Cast(number, to=dtype)


def _number(value: float, dtype: ir.DataType) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=dtype))


def _rest(dividend: Any, divisor: Any, dtype: ir.DataType) -> tuple[Any, Any]:
    """The rest of a floating division, exact and of the dividend's sign, and whether the divisor has the other one."""
    zero, rest = _number(0.0, dtype), op.Mod(dividend, divisor, fmod=1)
    return rest, op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(divisor, zero)))


def _floating_floor(dividend: Any, divisor: Any, dtype: ir.DataType) -> Any:
    """The whole number of times, as torch counts it: a quotient may be rounded up to the next one (-1.5 // 0.3)."""
    zero, half, one = (_number(value, dtype) for value in (0.0, 0.5, 1.0))
    rest, apart = _rest(dividend, divisor, dtype)
    quotient = op.Div(op.Sub(dividend, rest), divisor)
    quotient = op.Where(apart, op.Sub(quotient, one), quotient)
    whole = op.Floor(quotient)
    whole = op.Where(op.Greater(op.Sub(quotient, whole), half), op.Add(whole, one), whole)
    plain = op.Div(dividend, divisor)
    whole = op.Where(op.Equal(quotient, zero), op.Mul(plain, zero), whole)
    return op.Where(op.Equal(divisor, zero), plain, whole)


def bernoulli(self: Any, generator: Any = None) -> Any:
    """Ones of these probabilities; those of ONNX are of the opposite, by the definition that ONNX Runtime takes."""
    return op.Cast(op.Less(op.RandomUniformLike(self), self), to=self.dtype)


def clamp(self: Any, min: Any = None, max: Any = None) -> Any:
    """A value between bounds; where ONNX has none it takes the largest number, which infinity is not."""
    low, high = (None if bound is None else op.CastLike(bound, self) for bound in (min, max))
    if not _is_integer(self):
        low = _constant(-math.inf, self) if low is None else low
        high = _constant(math.inf, self) if high is None else high
    return op.Clip(self, low, high)


def cross_entropy(
    self: Any,
    target: Any,
    weight: Any = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """The loss of classes; ONNX has it without smoothing alone."""
    if label_smoothing or not _is_integer(target):
        raise NotImplementedError("cross_entropy of probabilities, or smoothed, has no translation to ONNX")
    kind = ("none", "mean", "sum")[reduction]
    return op.SoftmaxCrossEntropyLoss(self, target, weight, reduction=kind, ignore_index=ignore_index)[0]


def resize_smoothly(mode: str) -> Callable[..., Any]:
    """A resize with antialiasing, by factors where these are given: they need not be the quotients of the sizes."""

    def resize(self: Any, output_size: Any, align_corners: bool, *factors: Any) -> Any:
        if align_corners:
            raise NotImplementedError("interpolate with antialias and align_corners has no translation to ONNX")
        scales = sizes = None
        if factors and all(isinstance(factor, float) for factor in factors):
            scales = op.Constant(value_floats=[1.0, 1.0, *factors])
        else:
            sizes = op.Concat(op.Shape(self, end=2), op.Cast(output_size, to=ir.DataType.INT64), axis=0)
        return op.Resize(self, None, scales, sizes, mode=mode, antialias=1, cubic_coeff_a=-0.5, exclude_outside=1)

    return resize


def shifted(direction: str, signed: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """A shift of bits; the exporter's makes signed integers of all, as of packed weights of four bits.

    Args:
        signed: the exporter's own, which is right for them.
    """

    def shift(self: Any, other: Any) -> Any:
        other = op.Constant(value=ir.tensor(other, dtype=self.dtype)) if isinstance(other, int) else other
        return op.BitShift(self, other, direction=direction) if self.dtype in _UNSIGNED else signed(self, other)

    return shift


_UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)
_LEFT = shifted("LEFT", core.aten_bitwise_left_shift)
_RIGHT = shifted("RIGHT", core.aten_bitwise_right_shift)

TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {
    aten.scalar_tensor.default: scalar_tensor,
    aten.rnn_tanh.input: recurrent("Tanh"),
    aten.rnn_relu.input: recurrent("Relu"),
    aten.squeeze.dim: lambda self, dim: squeeze_dims(self, [dim]),
    aten.squeeze.dims: squeeze_dims,
    aten.mean.dim: mean_dim,
    aten.softmax.int: softmax_by(op.Softmax),
    aten.log_softmax.int: softmax_by(op.LogSoftmax),
    aten.logaddexp.default: log_of_sum(math.e),
    aten.logaddexp2.default: log_of_sum(2.0),
    aten.log_sigmoid.default: log_sigmoid,
    aten.signbit.default: signbit,
    aten.atan2.default: atan2,
    aten.round.default: same_integers(op.Round),
    aten.floor.default: same_integers(op.Floor),
    aten.ceil.default: same_integers(op.Ceil),
    aten.trunc.default: same_integers(trunc),
    aten.relu.default: relu,
    aten.where.self: where,
    aten.scatter_reduce.two: scatter_reduce,
    aten.sort.stable: sort_stable,
    operator.floordiv: floor_divided,
    aten.div.Tensor_mode: rounded_quotient,
    aten.div.Scalar_mode: rounded_quotient,
    aten.floor_divide.default: floor_divide,
    aten.floor_divide.Scalar: floor_divide,
    aten.remainder.Tensor: remainder,
    aten.remainder.Scalar: remainder,
    aten.remainder.Scalar_Tensor: remainder,
    aten.scatter.src: scatter,
    aten.scatter_add.default: lambda self, dim, index, src: scatter(self, dim, index, src, "add"),
    # That of torch has a sum of truths.
    aten.add.Tensor: core.aten_add,
    aten.bernoulli.default: bernoulli,
    aten.clamp.default: clamp,
    aten.clamp_min.default: clamp,
    aten.clamp_max.default: lambda self, max: clamp(self, max=max),
    aten.cross_entropy_loss.default: cross_entropy,
    aten._upsample_bilinear2d_aa.default: resize_smoothly("linear"),
    aten._upsample_bicubic2d_aa.default: resize_smoothly("cubic"),
    aten.avg_pool2d.default: avg_pool(2),
    aten.avg_pool3d.default: avg_pool(3),
    aten.adaptive_avg_pool1d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten.adaptive_max_pool1d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.adaptive_max_pool3d.default: adaptive_max_pool,
    aten.pow.Tensor_Scalar: power,
    **dict.fromkeys((aten.__lshift__.Scalar, aten.__lshift__.Tensor), _LEFT),
    **dict.fromkeys((aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar), _LEFT),
    **dict.fromkeys((aten.__rshift__.Scalar, aten.__rshift__.Tensor), _RIGHT),
    **dict.fromkeys((aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar), _RIGHT),
}
