"""The operators of a traced program in those that the exporter translates, one by one.

    aten.relu_(x)               ->  aten.relu(x)
    aten.batch_norm(x, …)       ->  aten._native_batch_norm_legit_no_training(x, …)[0]
    aten.flatten(x, 1)          ->  aten.reshape(x, [batch, 512])
    aten.to(x, float32)         ->  aten.alias(x), or aten._to_copy
    aten.dropout(x, 0.1, False) ->  aten.alias(x)

`torch.onnx` traces the whole program twice more for that, half to two thirds of an export; it still does where one
operator needs more than this.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, fx

from repl_fx._torch import HigherOrderOperator, OpOverload, is_composite, pytree
from repl_fx.graph.captured import writes_in_place
from repl_fx.graph.roles import aliases

aten = torch.ops.aten

# An operator with its arguments, and what finds one for a node: of its arguments by name, and of sizes that are nodes.
_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
_Rule = Callable[[fx.Node, Mapping[str, Any], dict[str, fx.Node]], _Call | None]

# Checks, which no file has.
_ASSERTIONS = (
    aten.sym_constrain_range_for_size.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten._assert_tensor_metadata.default,
)
# Results that share memory with an argument, translated as the copies that a retrace makes of them.
_VIEWS = {
    *(aten.alias.default, aten.contiguous.default, aten.detach.default, aten.expand.default, aten.narrow.default),
    *(aten.permute.default, aten.reshape.default, aten.select.int, aten.slice.Tensor, aten.split.Tensor),
    *(aten.split_with_sizes.default, aten.squeeze.dim, aten.squeeze.dims, aten.t.default, aten.transpose.int),
    *(aten.unbind.int, aten.unsqueeze.default, aten.view.default),
}
# Other names.
_RENAMED = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.max.other: aten.maximum.default,
    aten.min.other: aten.minimum.default,
}
# Made of others, and with memory of their own.
_FRESH = {
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default, aten.matmul.default),
    *(aten.group_norm.default, aten.instance_norm.default, aten.layer_norm.default),
}


def decompose(
    whole: Callable[..., torch.export.ExportedProgram], program: torch.export.ExportedProgram, registry: Any
) -> torch.export.ExportedProgram:
    """Write the operators of a program in others that have a translation.

    Args:
        whole: does so by traces of the program; for those that are not written here.
        program: changed in place, to one that computes the same.
        registry: the translations of the exporter.

    Returns:
        The program, or what `whole` makes of it.
    """
    graph, sizes = program.graph, dict[str, fx.Node]()
    for node in list(graph.nodes):
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            with graph.inserting_before(node):
                _write_otherwise(node, sizes)
        if isinstance(node.meta.get("val"), torch.SymInt):
            sizes.setdefault(str(node.meta["val"]), node)
    # Its own translation of `reshape` takes a size of 0 for that of the input.
    registry.register_op(aten.reshape.default, registry.get_decomps(aten.view.default)[0].onnx_function)
    assertions = {node for node in graph.nodes if node.target in _ASSERTIONS and not node.users}
    kept = (node for node in graph.nodes if node.op not in ("placeholder", "output") and node not in assertions)
    if not all(_is_translated(node, registry) for node in kept):
        return whole(program, registry)
    for node in assertions:
        graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _write_otherwise(node: Any, known: dict[str, fx.Node]) -> None:
    """Write a call of an operator as one of another, where this module knows one.

    Args:
        known: nodes before that are sizes, by what these are; those that are made come to them.
    """
    written: _Call | None = None
    if node.target in _RENAMED:
        written = _RENAMED[node.target], node.args, node.kwargs
    elif node.target in _WRITTEN:
        arguments = node.target._schema.arguments
        given = {each.name: each.default_value for each in arguments}
        given |= dict(zip(given, node.args, strict=False)) | node.kwargs
        written = _WRITTEN[node.target](node, given, known)
    elif writes_in_place(node) and (made_anew := _made_anew(node)) is not None:
        written = made_anew, node.args, node.kwargs
    if written is not None:
        node.target, node.args, node.kwargs = written


def _passing(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call | None:
    """A dropout, where it drops nothing."""
    return (aten.alias.default, node.args[:1], {}) if given["train"] is False else None


def _cast(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call | None:
    made, value = node.meta["val"], given["self"].meta["val"]
    if (made.device, made.layout) != (value.device, value.layout):
        return None
    alike = made.dtype == value.dtype
    target = aten.alias.default if alike else aten._to_copy.default
    return target, (given["self"],), {} if alike else {"dtype": made.dtype}


def _normalised(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call | None:
    """A batch norm, where it takes the statistics that it has."""
    if given["training"] is not False or given["running_mean"] is None:
        return None
    wanted = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
    made = node.graph.call_function(aten._native_batch_norm_legit_no_training.default, tuple(given[n] for n in wanted))
    # Nobody reads statistics of it, and a call on fakes for their shapes takes a dozen others.
    value = node.meta["val"]
    made.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    return operator.getitem, (made, 0), {}


def _attended(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call | None:
    """Attention with a mask, zero where that lets a row see nothing; the exporter's has a mean there, or no number."""
    mask = given["attn_mask"]
    if mask is None:
        return None
    made = node.graph.node_copy(node)
    # A mask of truths shows what is true.
    shut_out = False if mask.meta["val"].dtype == torch.bool else -math.inf
    hidden = _called(node, aten.eq.Scalar, mask, shut_out)
    return aten.masked_fill.Scalar, (made, _called(node, aten.all.dim, hidden, -1, True), 0.0), {}


def _flat(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call:
    sizes = _sizes(node, given["self"], known)
    first, last = (given[end] % max(len(sizes), 1) for end in ("start_dim", "end_dim"))
    shape = (*sizes[:first], _product(node, sizes[first : last + 1]), *sizes[last + 1 :])
    return aten.reshape.default, (given["self"], shape), {}


def _pieces(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call | None:
    size = given["self"].meta["val"].shape[given["dim"]]
    if not isinstance(size, int) or not size:
        return None
    return aten.split.Tensor, (given["self"], -(-size // given["chunks"]), given["dim"]), {}


def _differences(node: fx.Node, given: Mapping[str, Any], known: dict[str, fx.Node]) -> _Call | None:
    """Values less those before them, once; transformers tells packed sequences apart by those of positions."""
    if given["n"] != 1 or node.meta["val"].dtype == torch.bool:
        return None
    dim, pieces = given["dim"], [given[name] for name in ("prepend", "self", "append") if given[name] is not None]
    values = _called(node, aten.cat.default, pieces, dim) if len(pieces) > 1 else pieces[0]
    later, earlier = (_called(node, aten.slice.Tensor, values, dim, *ends) for ends in ((1,), (0, -1)))
    return aten.sub.Tensor, (later, earlier), {}


def _like_another(target: OpOverload) -> _Rule:
    return lambda node, given, known: (target, (given["self"], _sizes(node, given["other"], known)), {})


_WRITTEN: Mapping[Any, _Rule] = {
    **dict.fromkeys((aten.dropout.default, aten.dropout_.default), _passing),
    **dict.fromkeys((aten.feature_dropout.default, aten.feature_dropout_.default), _passing),
    **dict.fromkeys((aten.to.device, aten.to.dtype, aten.to.dtype_layout, aten.to.other), _cast),
    aten.batch_norm.default: _normalised,
    aten.chunk.default: _pieces,
    aten.diff.default: _differences,
    aten.expand_as.default: _like_another(aten.expand.default),
    aten.flatten.using_ints: _flat,
    aten.scaled_dot_product_attention.default: _attended,
    aten.reshape_as.default: _like_another(aten.reshape.default),
}


def _sizes(node: fx.Node, tensor: fx.Node, known: dict[str, fx.Node]) -> list[Any]:
    """The sizes of a tensor that a call takes: numbers, and nodes."""
    sizes: list[Any] = list(tensor.meta["val"].shape)
    for dim, size in enumerate(sizes):
        if not isinstance(size, int):
            if str(size) not in known:
                known[str(size)] = _called(node, aten.sym_size.int, tensor, dim)
            sizes[dim] = known[str(size)]
    return sizes


def _product(node: fx.Node, sizes: Sequence[Any]) -> Any:
    """The product of sizes that are numbers or nodes."""
    numbers: Any = math.prod(size for size in sizes if isinstance(size, int))
    return reduce(partial(_called, node, operator.mul), (s for s in sizes if not isinstance(s, int)), numbers)


def _called(node: fx.Node, target: Any, *arguments: Any) -> fx.Node:
    """A call that is made for a node."""
    made = node.graph.call_function(target, arguments)
    made.meta = {**node.meta, "val": target(*fx.map_arg(arguments, lambda argument: argument.meta["val"]))}
    return made


def _made_anew(node: Any) -> OpOverload | None:
    """The operator that returns what another writes into its first argument; None where anybody sees the difference."""
    written, name = node.args[0], node.target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None)
    anew = getattr(packet, node.target._overloadname, None) if name.endswith("_") else None
    if anew is None or [a.name for a in anew._schema.arguments] != [a.name for a in node.target._schema.arguments]:
        return None
    tensors = [argument.meta["val"] for argument in node.all_input_nodes]
    alike = all(not isinstance(tensor, Tensor) or tensor.dtype == tensors[0].dtype for tensor in tensors)
    read = [user for user in written.users if user is not node]
    hidden = written.op != "call_function" or any(user > node for user in read)
    return anew if alike and not hidden and not any(map(_shares_memory, (written, *read))) else None


def _shares_memory(node: Any) -> bool:
    """Tell whether a result may be memory of an argument."""
    if node.target is operator.getitem:
        return _shares_memory(node.args[0])
    if not isinstance(node.target, OpOverload):
        return True
    composite = node.target not in _FRESH and is_composite(node.target)
    return composite or writes_in_place(node) or aliases(node.target)


def _is_translated(node: fx.Node, registry: Any) -> bool:
    """Tell whether the exporter translates a call as it stands."""
    if node.op != "call_function" or isinstance(node.target, HigherOrderOperator) or writes_in_place(node):
        return False
    if aliases(node.target) and node.target not in _VIEWS:
        return False
    values = pytree.tree_leaves(node.meta.get("val"))
    # The translation of a complex tensor is another one.
    return bool(registry.is_registered(node.target)) and not any(
        isinstance(v, Tensor) and v.is_complex() for v in values
    )
