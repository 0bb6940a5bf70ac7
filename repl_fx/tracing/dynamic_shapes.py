"""Which dimensions of the example inputs may vary: one answer for capture and for export.

Every dimension is asked for with `torch.export.Dim.AUTO`: torch.export keeps it symbolic where the model allows and
makes it static where the model does not, instead of refusing the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ShapesCollection

from repl_fx._torch import fixed_size
from repl_fx.errors import BadInput
from repl_fx.graph.axes import axes_of, captured_axes, is_called, tensor_inputs
from repl_fx.graph.captured import drop_dead
from repl_fx.graph.runtime import SizeCheck, check_shape
from repl_fx.running.example_inputs import ExampleInputs

# The names by which decoders take and return their cache: of transformers up to 5.23, and from 5.24 on.
CACHES = ("past_key_values", "cache")


def every_dim(tensor: Tensor) -> tuple[int, ...]:
    """Return all dimensions: torch.export fixes those that a model takes at one size alone."""
    return tuple(range(tensor.ndim))


def outer_dims(tensor: Tensor) -> tuple[int, ...]:
    """Return the dimensions to ask for where a model's arithmetic on all of them is too involved to follow.

    Returns:
        Every dimension of integer and bool tensors (token ids and masks: batch and length); 0 and 1 of floating tensors
        of three dimensions (batch, length, features); 0 of all others, and none for a scalar.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return every_dim(tensor)
    return (0, 1) if tensor.ndim == 3 else batch_dims(tensor)


def batch_dims(tensor: Tensor) -> tuple[int, ...]:
    """Return dimension 0 alone: what is left to ask for when a model refuses a sequence length of its own choice."""
    return (0,) if tensor.ndim else ()


def auto_shapes(
    inputs: ExampleInputs, *, dims: Callable[[Tensor], tuple[int, ...]] = every_dim
) -> ShapesCollection | None:
    """Describe the example inputs to torch.export: what may vary, and what may not.

    Returns:
        The `dynamic_shapes` of `torch.export.export` and `torch.onnx.export`. They are keyed by tensor, so each is
        right for any nesting and for any order of keywords; the same tensor objects must be passed to the exporter.
        None when there is no dimension to vary.
    """
    kind: Any = ShapesCollection
    shapes: ShapesCollection = kind()
    for tensor in inputs.tensors:
        # Size 1 cannot be told apart from broadcasting, so torch.export makes it static even when asked with AUTO, and
        # the ONNX exporter, which lets it vary, breaks masks of shape (batch, 1, length, length).
        wanted = {dim: Dim.AUTO for dim in dims(tensor) if tensor.shape[dim] > 1}
        if wanted:
            shapes[tensor] = wanted
    return shapes if len(shapes) else None


def names_in(fixed: Sequence[str] | str) -> tuple[str, ...]:
    """The names of dimensions that a user wants fixed; a text has them with commas between.

    Raises:
        BadInput: they are no names.
    """
    given: Any = fixed.split(",") if isinstance(fixed, str) and fixed else fixed
    names = tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise BadInput(f"fixed is {fixed!r}; give names of dimensions, such as height,width or x.2")
    return tuple(name.strip() for name in names)


def fix_dims_(graph: fx.Graph, names: Collection[str]) -> list[str]:
    """Fix dimensions of the inputs of a traced graph at the sizes of the example inputs.

    Args:
        graph: changed in place: it refuses other sizes, and has numbers where it computed with these sizes.
        names: the dimensions, as `is_called` takes them.

    Returns:
        The dimensions that are fixed now and were not before, those of the same symbols among them: `x.2`.
    """
    axes, nodes = axes_of(graph), tensor_inputs(graph)
    free = {axis: nodes[axis.input].meta["val"].shape[axis.number] for axis in axes if axis.symbol is not None}
    wanted = [size for axis, size in free.items() if is_called(axis, names)]
    if not wanted:
        return []
    for size in wanted:
        # A trace knows by that that it is the one of the example inputs, and all that follows.
        int(size)
    for node in list(graph.nodes):
        if node.target is check_shape:
            tensor, _, words = node.args
            node.args = (tensor, tuple(map(fixed_size, tensor.meta["val"].shape)), words)
        elif isinstance(node.target, SizeCheck):
            shapes = [tensor.meta["val"].shape for tensor in node.all_input_nodes]
            numbers = {name: fixed_size(shapes[number][dim]) for name, number, dim in node.target.sizes}
            if all(numbers.values()):
                graph.erase_node(node)
            else:
                node.target = node.target.at({name: number for name, number in numbers.items() if number is not None})
    put_numbers_(graph)
    drop_dead(graph)
    return [f"{axis.input}.{axis.number}" for axis, size in free.items() if fixed_size(size) is not None]


def put_numbers_(graph: fx.Graph) -> None:
    """Put numbers in the place of computed sizes that a trace has fixed, as in the layers that came after."""
    sizes = {node: node.meta.get("val") for node in graph.nodes}
    numbers = {node: fixed_size(size) for node, size in sizes.items() if isinstance(size, torch.SymInt)}
    fixed: dict[fx.Node, Any] = {node: number for node, number in numbers.items() if number is not None}
    for user in dict.fromkeys(user for node in fixed for user in node.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda used: fixed.get(used, used))


def require_known(names: Collection[str], graphs: Iterable[fx.GraphModule]) -> None:
    """Refuse names of dimensions that no graph has.

    Raises:
        BadInput: the name, and those of the free dimensions.
    """
    axes = [axis for gm in graphs for axis in captured_axes(gm)]
    unknown = next((name for name in names if not any(is_called(axis, [name]) for axis in axes)), None)
    if unknown is not None:
        free = ", ".join(dict.fromkeys(axis.name for axis in axes if axis.symbol is not None)) or "none"
        raise BadInput(f"fixed has {unknown!r}, which is no dimension of the inputs; free are {free}")
