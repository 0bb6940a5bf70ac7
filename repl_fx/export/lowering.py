"""Operators that the ONNX exporter stumbles over, written in operators that it translates.

    before   aten.rsub.Scalar(mask, 1.0)
    after    subtracted_from(mask, 1.0)      which torch.export traces into neg and add

Each replacement computes the same values; where it would cost more, the original stays in the graph that trains.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from repl_fx._torch import OpOverload, example_of
from repl_fx.graph.captured import is_tensor
from repl_fx.graph.decisions import Condition, is_choice, is_random, pick
from repl_fx.graph.runtime import SizeCheck, check_condition, check_layout
from repl_fx.graph.signature import PackOutput
from repl_fx.passes.driver import Result

# Integers whose lowest is no number, index or class of anybody's.
_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)


def lower_(gm: fx.GraphModule) -> Result:
    """Replace such operators in a graph, and in the graphs of the modules inside it.

    Args:
        gm: changed in place.

    Returns:
        The graph, with the names of the calls that were replaced.
    """
    changed = _lower(gm.graph)
    for module in gm.modules():
        if isinstance(module, fx.GraphModule) and module is not gm:
            # The graphs of mode switches may be those of the source.
            graph = copy.deepcopy(module.graph)
            lowered = _lower(graph)
            if lowered:
                module.graph = graph
                changed += lowered
    return Result(gm, tuple(changed))


def _lower(graph: fx.Graph) -> list[str]:
    changed = []
    for node in list(graph.nodes):
        lowered = _lowered(node) if node.op == "call_function" else None
        if lowered is not None:
            node.target, settings = lowered
            node.kwargs = {**node.kwargs, **settings}
        elif node.target is check_condition:
            _withhold(graph, node, _truth if node.args[1] else _untruth)
        elif node.target is check_layout or _converts_nothing(node):
            # Tensors of ONNX have no strides, and those that are complex no alias.
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif isinstance(node.target, SizeCheck):
            # Where the source stops, the operators of the file do not go together either, but for a loss of ONNX, which
            # takes more targets than there are values.
            if node.target.limit and (node.target.alike or len(node.all_input_nodes) == 1):
                graph.erase_node(node)
            else:
                _withhold(graph, node, node.target.truth)
        else:
            continue
        changed.append(node.name)
    return changed


def _withhold(graph: fx.Graph, check: fx.Node, truth: Callable[..., Tensor]) -> None:
    """Let outputs be no values where a check would refuse the inputs: an ONNX graph cannot raise an error.

    Floating ones are NaN then; where there are none, integers are the lowest of their kind, if that is below 0.

    Args:
        truth: of the tensors that are checked.
    """
    with graph.inserting_before(check):
        holds = graph.call_function(truth, tuple(check.all_input_nodes))
    holds.meta = dict(check.meta)
    graph.erase_node(check)
    output = graph.output_node()
    ends = [*(node for node in output.all_input_nodes if isinstance(node.target, PackOutput)), output]
    values = [value for value in dict.fromkeys(f for end in ends for f in end.all_input_nodes) if is_tensor(value)]
    floating = [value for value in values if value.meta["val"].is_floating_point()]
    for value in floating or [value for value in values if value.meta["val"].dtype in _SIGNED]:
        # Behind what is written into the value in place.
        with graph.inserting_before(min(ends)):
            kept = graph.call_function(_or_no_value, (holds, value))
        kept.meta = dict(value.meta)
        value.replace_all_uses_with(kept, delete_user_cb=lambda user: user in ends)


def _lowered(node: fx.Node) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The function that stands in for an operator, and its further keyword arguments; None where the operator stays."""
    if isinstance(node.target, Condition):
        return _truth if node.target.skips_when else _untruth, {}
    if (node.target is pick or is_choice(node)) and isinstance(node.args[0], fx.Node) and not is_random(node.args[0]):
        return _where, {}
    if not isinstance(node.target, str) and node.target in _OF_SIZES:
        return _OF_SIZES[node.target], {}
    name = str(node.target)
    given = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if name == "aten.scaled_dot_product_attention.default" and (not isinstance(given, Tensor) or given.ndim == 4):
        return None
    if name in ("aten.chunk.default", "aten.split.Tensor") and _cuts_a_computed_size(node):
        return pieces, {"count": len(node.meta["val"]), "equal": name == "aten.chunk.default"}
    if str(getattr(node.target, "overloadpacket", "")) in _STACKS and isinstance(node.target, OpOverload):
        return of_one_dtype(node.target, node.meta["val"].dtype), {}
    is_complex = isinstance(given, Tensor) and given.is_complex()
    if isinstance(given, Tensor) and not is_complex and name in _TO_COMPLEX and _has_complex(node.args[1:]):
        return _TO_COMPLEX[name], {}
    if is_complex and isinstance(node.target, OpOverload) and (function := _of_complex(node, node.target)):
        return function, {}
    if name == "aten.istft.default":
        settings = inspect.signature(istft).bind(*node.args, **node.kwargs).arguments
        return None if settings.get("return_complex") else (istft, {})
    at_start = name == "aten.as_strided.default" and node.args[3:] in ((), (None,))
    if at_start and isinstance(given, Tensor) and (order := _order_in_memory(given)):
        return strided, {"order": order}
    return (_LOWERED[name], {}) if name in _LOWERED else None


def _of_complex(node: fx.Node, operator: OpOverload) -> Callable[..., Any] | None:
    """The function that stands in for an operator on complex numbers; None where it stays."""
    name = str(operator)
    if name == "aten.pad.default":
        settings: dict[str, Any] = dict(zip(("mode", "value"), node.args[2:], strict=False)) | node.kwargs
        zeros = settings.get("mode", "constant") == "constant" and not settings.get("value")
        return complex_pad if zeros else None
    if _has_complex(node.args[1:]):
        return None
    if str(operator.overloadpacket) in _OF_PARTS:
        return of_parts(operator)
    return with_real_part(operator) if name in _SUMS and isinstance(node.args[1], int | float) else None


def _converts_nothing(node: fx.Node) -> bool:
    """Tell whether a node converts a complex tensor to the kind that it has, as `freqs_cis.to(h.device)` does."""
    given = node.all_input_nodes[0].meta.get("val") if str(node.target).startswith("aten.to.") else None
    alike = isinstance(given, Tensor) and given.is_complex() and given.dtype == node.meta["val"].dtype
    return alike and not node.kwargs.get("copy")


def _has_complex(arguments: Sequence[Any]) -> bool:
    values = (argument.meta.get("val") if isinstance(argument, fx.Node) else argument for argument in arguments)
    return any(value.is_complex() if isinstance(value, Tensor) else isinstance(value, complex) for value in values)


def _cuts_a_computed_size(node: fx.Node) -> bool:
    tensor, size, *rest = node.args
    if not isinstance(tensor, fx.Node) or not isinstance(node.meta.get("val"), list | tuple):
        return False
    along = tensor.meta["val"].shape[rest[0] if rest else 0]
    return isinstance(size, fx.Node) or not isinstance(along, int)


def _order_in_memory(value: Tensor) -> list[int] | None:
    """The dimensions of a tensor from the largest stride to the smallest; None where they are in order."""
    # Of symbolic strides those of the example: to compare expressions would cost more than all the rest of an export.
    strides = [example_of(stride) for stride in value.stride()]
    order = sorted(range(value.ndim), key=lambda dim: -strides[dim])
    return None if order == list(range(value.ndim)) else order


def _truth(value: Tensor) -> Tensor:
    return torch.ne(value, 0)


def _untruth(value: Tensor) -> Tensor:
    return torch.eq(value, 0)


def _or_no_value(holds: Tensor, value: Tensor) -> Tensor:
    return torch.where(holds, value, torch.nan if value.is_floating_point() else torch.iinfo(value.dtype).min)


def _where(skip: Tensor, before: Any, after: Any) -> Any:
    """Both ways are computed; an ONNX graph jumps over nothing here."""
    return None if before is None else torch.where(skip, before, after)


def pieces(tensor: Tensor, size: int, dim: int = 0, *, count: int, equal: bool) -> tuple[Tensor, ...]:
    """Slices of one size, the last as long as what is left; of a computed dimension, ONNX wants the sizes written.

    Where `equal`, `size` is a number of equal pieces, and not their size.
    """
    if equal:
        size = -(-tensor.shape[dim] // size)
    return _cut(tensor, dim, [number * size for number in range(count)])


def sections(tensor: Tensor, count: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Slices of which the first are longer by one where there is a rest; the exporter counts those of the example."""
    size, rest = tensor.shape[dim] // count, tensor.shape[dim] % count
    return _cut(tensor, dim, [number * size + torch.sym_min(number, rest) for number in range(count)])


def _cut(tensor: Tensor, dim: int, starts: Sequence[Any]) -> tuple[Tensor, ...]:
    ends = [*starts[1:], None]
    return tuple(torch.ops.aten.slice.Tensor(tensor, dim, start, end) for start, end in zip(starts, ends, strict=True))


def subtracted_from(tensor: Tensor, scalar: Any, alpha: Any = 1) -> Tensor:
    """`scalar - alpha * tensor`; the exporter has no overload for a whole tensor and a floating scalar."""
    return torch.add(torch.neg(tensor if alpha == 1 else torch.mul(tensor, alpha)), scalar)


def evenly_spaced(
    start: float, end: float, steps: int, *, dtype: torch.dtype | None = None, device: Any = None
) -> Tensor:
    """`torch.linspace`, whose operator has no symbolic number of steps; both halves are counted from their own end."""
    first, last, behind = (torch.scalar_tensor(n, dtype=torch.float64, device=device) for n in (start, end, steps - 1))
    number = torch.arange(steps, dtype=torch.float64, device=device)
    step = (last - first) / behind.clamp(min=1)
    spaced = torch.where(number < (behind + 1) / 2, first + step * number, last - step * (behind - number))
    return spaced.to(dtype or torch.get_default_dtype())


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """`functional.affine_grid` with the places of pixels counted by `evenly_spaced`; a single one is in the middle."""
    lines = []
    for n in size[2:]:
        end: Any = torch.sym_min(n - 1, 1) if align_corners else (n - 1) / n
        lines.append(evenly_spaced(-end, end, n, dtype=theta.dtype, device=theta.device))
    places = torch.meshgrid(*lines, indexing="ij")
    flat = torch.stack([*reversed(places), torch.ones_like(places[0])], -1).flatten(0, -2)
    return (flat @ theta.mT).view(size[0], *size[2:], len(places))


def mean_of_all(tensor: Tensor, kernel: Sequence[int]) -> Tensor:
    """An average pool over all that there is along the last dimensions."""
    return tensor.mean(list(range(-len(kernel), 0)), keepdim=True)


def largest_of_all(tensor: Tensor, kernel: Sequence[int]) -> Tensor:
    """A max pool over all that there is along the last dimensions."""
    return tensor.amax(list(range(-len(kernel), 0)), keepdim=True)


def of_one_kind(clamp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A clamp between bounds of one kind; the exporter takes no whole bound beside a floating one."""

    def clamped(tensor: Tensor, min: Any = None, max: Any = None) -> Tensor:
        if any(isinstance(bound, float | torch.SymFloat) for bound in (min, max)):
            min, max = (None if bound is None else torch.sym_float(bound) for bound in (min, max))
        return clamp(tensor, min, max)

    return clamped


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """A power of the dtype that torch gives it: ONNX gives it that of the base."""
    return torch.pow(base.to(torch.result_type(base, exponent)), exponent)


def of_one_dtype(stack: OpOverload, dtype: torch.dtype) -> Callable[..., Tensor]:
    """An operator that stacks tensors, for any of them: ONNX stacks those of one dtype."""

    def stacked(tensors: Sequence[Tensor], *args: Any) -> Tensor:
        result: Tensor = stack([tensor.to(dtype) for tensor in tensors], *args)
        return result

    return stacked


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *settings: Any, **named: Any
) -> Tensor:
    """Attention over other than four dimensions; the exporter translates (batch, heads, positions, features) alone."""
    lead = query.shape[:-2]

    def four(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, -4) if tensor.ndim > 4 else tensor[(None,) * (4 - tensor.ndim)]

    if attn_mask is not None and len(lead) > 2:
        # A mask that broadcasts over dimensions that become one has to be spelled out there.
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:])
    attend = torch.nn.functional.scaled_dot_product_attention
    mask = None if attn_mask is None else four(attn_mask)
    result = attend(four(query), four(key), four(value), mask, *settings, **named)
    return result.reshape(*lead, *result.shape[-2:])


def strided(tensor: Tensor, size: Any, stride: Any, offset: None = None, *, order: Sequence[int]) -> Tensor:
    """Elements of a tensor's memory; the exporter takes that for the memory of a contiguous tensor.

    A transposed one is turned back first, so that it is: `order` has its dimensions, the largest stride first.
    """
    return torch.as_strided(tensor.permute(*order).contiguous(), size, stride)


def grouped_matmul(rows: Tensor, weights: Tensor, ends: Tensor, *_: Any) -> Tensor:
    """Rows of consecutive groups, each times the matrix of its group.

    ONNX has no such operator. Every row is multiplied with every matrix and the product of its group is taken: so many
    times the work, but no more memory than one product.

    Args:
        rows: (rows, in features), those of one group after those of another.
        weights: (groups, in features, out features).
        ends: the row behind the last of each group.
    """
    number = torch.arange(rows.shape[0], device=rows.device)
    group = (number[:, None] >= ends[None, :]).sum(dim=1)
    result = torch.zeros_like(rows[:, :1]).expand(-1, weights.shape[2])
    for index in range(weights.shape[0]):
        result = torch.where((group == index)[:, None], rows @ weights[index], result)
    return result


def angle(tensor: Tensor) -> Tensor:
    """The angle of complex numbers, by the signs of both parts; the exporter takes -0.0 for 0.0."""
    return torch.atan2(tensor.imag, tensor.real) if tensor.is_complex() else torch.angle(tensor)


def complex_pad(tensor: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> Tensor:
    """Zeros around complex numbers, put around both parts; the exporter pads real ones alone."""
    return torch.view_as_complex(torch.nn.functional.pad(torch.view_as_real(tensor), [0, 0, *pad]))


def istft(
    spectra: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    """The real signal of spectra (…, frequencies, frames); ONNX has no such operator.

    Frames are laid over each other, and their sum is divided by that of the squared windows. Of whole spectra the first
    half counts.
    """
    hop, wide = hop_length or n_fft // 4, win_length or n_fft
    frames = torch.fft.irfft(spectra.transpose(-1, -2), n_fft, norm="ortho" if normalized else "backward")
    shape = torch.ones(wide, dtype=frames.dtype, device=frames.device) if window is None else window
    before = (n_fft - wide) // 2
    shape = torch.nn.functional.pad(shape, [before, n_fft - wide - before])
    count = frames.shape[-2]
    whole = n_fft + hop * (count - 1)

    def laid(columns: Tensor) -> Tensor:
        """The sum (batch, 1, 1, whole) of columns (batch, n_fft, frames)."""
        return torch.nn.functional.fold(columns, (1, whole), (1, n_fft), stride=(1, hop))

    squares = laid((shape * shape)[None, :, None].expand(1, -1, count))
    total = laid((frames * shape).transpose(-1, -2).reshape(-1, n_fft, count))
    begin = n_fft // 2 if center else 0
    end = whole - begin if length is None else min(begin + length, whole)
    signal = (total[..., begin:end] / squares[..., begin:end]).reshape(*spectra.shape[:-2], end - begin)
    return signal if length is None else torch.nn.functional.pad(signal, [0, length - (end - begin)])


def of_parts(operator: Callable[..., Any]) -> Callable[..., Any]:
    """An operator on both parts of complex numbers, such as a choice of rows; the exporter has it for real ones."""

    def parted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        real, imaginary = (operator(part, *args, **kwargs) for part in (tensor.real, tensor.imag))
        if isinstance(real, Tensor):
            return torch.complex(real, imaginary)
        return [torch.complex(*both) for both in zip(real, imaginary, strict=True)]

    return parted


def with_real_part(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sum of complex numbers and one real number; onnxscript takes no constant that is complex."""

    def changed(tensor: Tensor, number: float, **settings: Any) -> Tensor:
        return torch.complex(operator(tensor.real, number, **settings), tensor.imag)

    return changed


def plus_complex(tensor: Tensor, other: Any) -> Tensor:
    """The sum of real numbers and complex ones."""
    real = tensor + other.real
    return torch.complex(real, torch.as_tensor(other.imag, dtype=real.dtype).expand_as(real))


def times_complex(tensor: Tensor, other: Any) -> Tensor:
    """The product of real numbers and complex ones."""
    return torch.complex(tensor * other.real, tensor * other.imag)


_TO_COMPLEX: dict[str, Callable[..., Any]] = {
    "aten.add.Tensor": plus_complex,
    "aten.mul.Tensor": times_complex,
    "aten.mul.Scalar": times_complex,
}
_STACKS = {f"aten.{name}" for name in ("stack", "hstack", "vstack", "dstack", "column_stack")}
_SUMS = ("aten.add.Tensor", "aten.sub.Tensor")
_CHOICES = ("unsqueeze", "expand", "repeat", "repeat_interleave", "select", "index", "index_select", "gather")
# Operators that do the same with both parts of complex numbers, but for those with other complex numbers.
_OF_PARTS = {
    f"aten.{name}" for name in (*_CHOICES, "split", "split_with_sizes", "chunk", "unbind", "detach", "mul", "div")
}
# Functions of sizes that are no operators.
_OF_SIZES: dict[Any, Callable[..., Any]] = {
    torch.linspace: evenly_spaced,
    **dict.fromkeys((torch.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), mean_of_all),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), largest_of_all),
}
# By the name of the overload: some are of libraries that need not be there.
_LOWERED: dict[str, Callable[..., Any]] = {
    "aten.affine_grid_generator.default": affine_grid,
    "aten.angle.default": angle,
    "aten.clamp.default": of_one_kind(torch.clamp),
    "aten.clamp_.default": of_one_kind(torch.clamp_),
    # As `torch.tensor(size)` has it on a view; the trace for the exporter refuses that.
    "aten.detach_.default": torch.detach,
    "aten.pow.Tensor_Tensor": power,
    "aten.rsub.Scalar": subtracted_from,
    "aten.tensor_split.sections": sections,
    "aten.scaled_dot_product_attention.default": attention,
    "aten._grouped_mm.default": grouped_matmul,
    "transformers.grouped_mm_fallback.default": grouped_matmul,
}
