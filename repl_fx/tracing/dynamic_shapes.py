"""Which dimensions of the example inputs may vary: one answer for capture and for export.

Every dimension is asked for with `torch.export.Dim.AUTO`: torch.export keeps it symbolic where the model allows and
makes it static where the model does not, instead of refusing the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.export import Dim, ExportedProgram, ShapesCollection

from repl_fx._torch import example_of, fixed_size, guards_of, pytree
from repl_fx.running.example_inputs import ExampleInputs

# The names by which decoders take and return their cache: of transformers up to 5.23, and from 5.24 on.
CACHES = ("past_key_values", "cache")


def dynamic_dims(tensor: Tensor) -> tuple[int, ...]:
    """Return the dimensions of an example input that may differ at run time.

    Returns:
        Every dimension of integer and bool tensors (token ids and masks: batch, sequence, and for attention masks the
        sequence again); 0 and 1 of floating tensors of three dimensions (batch, sequence, features); 0 of all others
        (but see `cache_dims`), and none for a scalar. The spatial size of images stays static: position embeddings and
        poolings specialise on it.
    """
    floating = tensor.is_floating_point() or tensor.is_complex()
    if not floating:
        return every_dim(tensor)
    return (0, 1) if tensor.ndim == 3 else batch_dims(tensor)


def cache_dims(arguments: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return the dimensions that may differ of keys and values that are kept from call to call: batch and length.

    Args:
        arguments: by name; one of `CACHES` is the cache.

    Returns:
        Dimensions 0 and 2 of floating tensors of four dimensions (batch, heads, length, c), by `id` of the tensor.
    """
    kept = pytree.tree_leaves([arguments.get(name) for name in CACHES])
    return {id(t): (0, 2) for t in kept if isinstance(t, Tensor) and t.ndim == 4 and t.is_floating_point()}


def dims_with_cache(arguments: Mapping[str, Any]) -> Callable[[Tensor], tuple[int, ...]]:
    """Return `dynamic_dims`, but for the tensors of a cache among arguments by name: `cache_dims`."""
    caches = cache_dims(arguments)
    return lambda tensor: caches.get(id(tensor)) or dynamic_dims(tensor)


def every_dim(tensor: Tensor) -> tuple[int, ...]:
    """Return all dimensions: inside a model, sizes come from eager code, which may choose others on the next call."""
    return tuple(range(tensor.ndim))


def batch_dims(tensor: Tensor) -> tuple[int, ...]:
    """Return dimension 0 alone: what is left to ask for when a model refuses a sequence length of its own choice."""
    return (0,) if tensor.ndim else ()


def auto_shapes(
    inputs: ExampleInputs, *, dims: Callable[[Tensor], tuple[int, ...]] = dynamic_dims
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


def baked_dims(program: ExportedProgram) -> set[tuple[int, int]]:
    """Which dimensions a trace lets vary although it took a number that was computed from them for a constant.

    `int(length // 4)` is such a number. torch.export writes the constant into the graph, and lets go of the condition
    that it holds under: `length // 4 == 2`. Conditions that hold for sizes twice and three times as large as well do
    not matter: they compare sizes that grow together.

    Returns:
        `id` of the example input, and the dimension.
    """
    traced = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = zip(program.graph_signature.user_inputs, pytree.tree_leaves(program.example_inputs), strict=True)
    sizes: dict[tuple[int, int], Any] = {
        (id(given), dim): size
        for name, given in inputs
        if isinstance(value := traced.get(str(name)), Tensor)
        for dim, size in enumerate(value.shape)
        if fixed_size(size) is None
    }
    examples = {size.node.expr: example_of(size) for size in sizes.values()}
    baked = {symbol for guard in guards_of(program.graph_module) for symbol in _fixed_by(guard, examples)}
    return {place for place, size in sizes.items() if size.node.expr.free_symbols & baked}


def _fixed_by(guard: Any, examples: Mapping[Any, int]) -> set[Any]:
    """The symbols of a guard that says that a rounded quotient is a constant."""
    if getattr(guard, "rel_op", None) != "==" or not any(side.is_Integer for side in guard.args) or not _rounds(guard):
        return set()
    for times in (2, 3):
        try:
            held = guard.subs({symbol: times * size for symbol, size in examples.items()})
        except ZeroDivisionError:
            held = False
        # A condition on other symbols than those of inputs stays one, and has no truth.
        if str(held) != "True":
            return set(guard.free_symbols)
    return set()


def _rounds(term: Any) -> bool:
    """Whether an expression divides and rounds. What is asked of a remainder holds for many sizes."""
    kind = type(term).__name__
    if kind.endswith("Mod"):
        return False
    return "Div" in kind or "ToInt" in kind or any(_rounds(inner) for inner in term.args)
