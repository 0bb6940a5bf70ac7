"""Operators that the ONNX exporter stumbles over, written in operators that it translates.

    before   aten.rsub.Scalar(mask, 1.0)
    after    subtracted_from(mask, 1.0)      which torch.export traces into neg and add

Each replacement computes the same values; where it would cost more, the original stays in the graph that trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional

from repl_fx._torch import OpOverload, example_of
from repl_fx.export.complex_numbers import converts_nothing, of_complex
from repl_fx.export.equivalents import (
    affine_grid,
    attention,
    bucketed,
    distances,
    evenly_spaced,
    grouped_matmul,
    largest_of_all,
    listed,
    mean_of_all,
    of_one_dtype,
    of_one_kind,
    pieces,
    power,
    repeated,
    searched,
    shift_in_one_dtype,
    strided,
    subtracted_from,
)
from repl_fx.graph.axes import axes_of, checks_by_name, tensor_inputs
from repl_fx.graph.captured import is_tensor
from repl_fx.graph.decisions import Condition, is_choice, is_random, pick
from repl_fx.graph.grouping import grouped
from repl_fx.graph.runtime import SizeCheck, check_condition, check_layout, check_shape
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
    _tie_(gm.graph)
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


def _tie_(graph: fx.Graph) -> None:
    """Ask whether sizes of one input are alike that have one symbol, where the graph reads it, and asks nothing.

    It is right at others, too, as each size is read where the model reads it; the exporter reads one of them for all.
    """
    nodes = tensor_inputs(graph)
    asked = {(name, dims) for check, (name, *_) in checks_by_name(graph) if (dims := _of_one_input(check))}
    sizes = [node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), torch.SymInt)]
    read = {str(symbol) for size in sizes for symbol in size.node.expr.free_symbols}
    alike = grouped(((axis.input, axis.symbol), axis.number) for axis in axes_of(graph) if axis.symbol in read)
    for (name, _), numbers in alike.items():
        for pair in pairwise(numbers):
            if (name, pair) not in asked:
                check: Any = SizeCheck("one == other", (("one", 0, pair[0]), ("other", 0, pair[1])), "", "")
                with graph.inserting_after(next(user for user in nodes[name].users if user.target is check_shape)):
                    graph.call_function(check, (nodes[name],)).meta = dict(nodes[name].meta)


def _of_one_input(check: SizeCheck) -> tuple[int, ...]:
    """The dimensions, in order, of one input that a check asks to be alike; none where it asks for other things."""
    alone = check.alike and len({number for _, number, _ in check.sizes}) == 1
    return tuple(sorted(dim for _, _, dim in check.sizes)) if alone else ()


def _lower(graph: fx.Graph) -> list[str]:
    changed = []
    for node in list(graph.nodes):
        lowered = _lowered(node) if node.op == "call_function" else None
        if lowered is not None:
            node.target, settings = lowered
            node.kwargs = {**node.kwargs, **settings}
        elif str(node.target) in _SQUEEZES and (along := _free_sizes(node)):
            for dim in along:
                # A file has one rank, that of the sizes of the example.
                check: Any = SizeCheck("size != 1", (("size", 0, dim),), "", "")
                with graph.inserting_before(node):
                    asked = graph.call_function(check, node.args[:1])
                asked.meta = dict(node.meta)
                _withhold(graph, asked, check.truth)
            node.target = torch.squeeze
        elif node.target is check_condition:
            _withhold(graph, node, _truth if node.args[1] else _untruth)
        elif node.target is check_layout or converts_nothing(node):
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
    if (function := of_complex(node)) is not None:
        return function, {}
    if (made := _of_other_arguments(node, name)) is not None:
        return made
    at_start = name == "aten.as_strided.default" and node.args[3:] in ((), (None,))
    if at_start and isinstance(given, Tensor) and (order := _order_in_memory(given)):
        return strided, {"order": order}
    return (_LOWERED[name], {}) if name in _LOWERED else None


def _of_other_arguments(node: fx.Node, name: str) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The function that stands in for an operator which the exporter translates for other arguments, or wrongly."""
    target: Any = node.target
    if name.startswith(_WINDOWS) and not any(isinstance(argument, fx.Node) for argument in node.args):
        settings: dict[str, Any] = {**node.kwargs, "device": "cpu"}
        return listed, {"values": target(*node.args, **settings).tolist(), "dtype": node.meta["val"].dtype}
    if name == "aten.bucketize.Tensor":
        boundaries = cast("fx.Node", node.args[1]).meta["val"]
        return None if isinstance(boundaries.shape[0], int) else (bucketed, {})
    if name == "aten.repeat_interleave.self_int" and isinstance(node.args[1], fx.Node):
        return repeated, {}
    return None


def _cuts_a_computed_size(node: fx.Node) -> bool:
    tensor, size, *rest = node.args
    if not isinstance(tensor, fx.Node) or not isinstance(node.meta.get("val"), list | tuple):
        return False
    along = tensor.meta["val"].shape[rest[0] if rest else 0]
    return isinstance(size, fx.Node) or not isinstance(along, int)


def _free_sizes(node: fx.Node) -> list[int]:
    """The dimensions that a call takes out where they have size 1, as they have not in the example but may have."""
    tensor, dims = cast("tuple[fx.Node, Any]", node.args[:2])
    shape = tensor.meta["val"].shape
    return [dim for dim in (dims if isinstance(dims, Sequence) else [dims]) if not isinstance(shape[dim], int)]


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


_SQUEEZES = {f"aten.{name}.{kind}" for name in ("squeeze", "squeeze_") for kind in ("dim", "dims")}
_WINDOWS = tuple(f"aten.{name}_window." for name in ("bartlett", "blackman", "hamming", "hann", "kaiser"))
_STACKS = {f"aten.{name}" for name in ("stack", "hstack", "vstack", "dstack", "column_stack")}
# Functions of sizes that are no operators.
_OF_SIZES: dict[Any, Callable[..., Any]] = {
    torch.linspace: evenly_spaced,
    **dict.fromkeys((torch.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), mean_of_all),
    **dict.fromkeys((torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), largest_of_all),
}
# By the name of the overload: some are of libraries that need not be there.
_LOWERED: dict[str, Callable[..., Any]] = {
    "aten.affine_grid_generator.default": affine_grid,
    "aten.cdist.default": distances,
    "aten.clamp.default": of_one_kind(torch.clamp),
    "aten.clamp_.default": of_one_kind(torch.clamp_),
    # As `torch.tensor(size)` has it on a view; the trace for the exporter refuses that.
    "aten.detach_.default": torch.detach,
    "aten.pow.Tensor_Tensor": power,
    "aten.rsub.Scalar": subtracted_from,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.searchsorted.Tensor": searched,
    **dict.fromkeys(
        ("aten.__lshift__.Tensor", "aten.bitwise_left_shift.Tensor"), shift_in_one_dtype(torch.bitwise_left_shift)
    ),
    **dict.fromkeys(
        ("aten.__rshift__.Tensor", "aten.bitwise_right_shift.Tensor"), shift_in_one_dtype(torch.bitwise_right_shift)
    ),
    "aten._grouped_mm.default": grouped_matmul,
    "transformers.grouped_mm_fallback.default": grouped_matmul,
}
