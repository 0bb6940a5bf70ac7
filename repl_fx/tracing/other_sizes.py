"""Whether a captured graph is right at other sizes than those it was traced with.

torch.export keeps a dimension dynamic when code asks whether it is even, and takes the answer for granted. Inside a
model that is captured in parts, where sizes come from eager code, the next call may well be odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size, pytree
from repl_fx.graph.captured import CapturedModule, copy_graph
from repl_fx.graph.runtime import check_shape
from repl_fx.graph.signature import bind_arguments, words_for
from repl_fx.passes.driver import Result, run_passes
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.opaque_outputs import equal_inside
from repl_fx.running.untouched import device_of, outcome_of
from repl_fx.tracing.size_questions import drop_checks_, size_checks

# Other sizes are tried on inputs no larger than this along a dimension.
_TRIAL_SIZE = 193
# Tensors, each with the sizes that it has in a trace; some of these are symbols.
_Traced = Sequence[tuple[Tensor, Sequence[Any]]]


def holds_at_other_sizes(module: nn.Module, gm: CapturedModule, inputs: ExampleInputs) -> bool:
    """Whether a graph computes what its source does at other sizes of the dimensions that stayed dynamic in it.

    Returns:
        False where it differs or fails; also where nothing can be said, because a size depends on others.
    """
    traced = _traced_shapes(gm, module, inputs)
    if all(fixed_size(size) is not None for _, shape in traced for size in shape):
        return True
    resized = _resized(traced, inputs)
    if resized is None:
        return False
    ours, theirs = (outcome_of(candidate, resized, training=False) for candidate in (module, gm))
    if ours.problem is not None or theirs.problem is not None:
        # Where the source does not take these sizes, there is nothing to be wrong about.
        return ours.problem is not None
    return all(
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True)
        for a, b in zip(pytree.tree_leaves(ours.outputs), pytree.tree_leaves(theirs.outputs), strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


def drop_questions_answered_alike_(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> Result:
    """Let a graph take a size of 1 again where it computes there what the model does, in both modes.

    `is_causal = length > 1` is such a question: whether one token is masked makes no difference.

    Args:
        gm: the graph captured from the model; its checks that fail at a size of 1 alone go where they are not needed.
        model: it runs on the example inputs, with the sizes asked about narrowed to 1, and is not changed.

    Returns:
        The graph, with the names of the checks that are gone.
    """
    checks: dict[tuple[fx.Node, int], list[str]] = {}
    for node in size_checks(gm.graph):
        check: Any = node.target
        if check.fails_at_one:
            (_, number, dim), = check.sizes
            checks.setdefault((node.all_input_nodes[number], dim), []).append(node.name)
    if not checks or device_of(model, inputs).type == "meta":
        return Result(gm)
    traced = _traced_shapes(gm, model, inputs)
    alike: list[str] = []
    for (tensor, dim), names in checks.items():
        trial = run_passes(copy_graph(gm, compiled=False), partial(drop_checks_, names=names)).graph_module
        if _same_outputs(trial, model, _narrowed(inputs, traced, str(tensor.meta["val"].shape[dim]))):
            alike += names
    return drop_checks_(gm, alike)


def other_sizes_of(gm: fx.GraphModule, module: nn.Module, inputs: ExampleInputs) -> ExampleInputs | None:
    """Inputs of other sizes where those of a graph are dynamic; None where none are, or a size depends on others."""
    traced = _traced_shapes(gm, module, inputs)
    if all(fixed_size(size) is not None for _, shape in traced for size in shape):
        return None
    return _resized(traced, inputs)


def _traced_shapes(gm: fx.GraphModule, module: nn.Module, inputs: ExampleInputs) -> _Traced:
    """The tensors among the inputs of a module, with the sizes that they have in a graph of it."""
    checks: list[Any] = [node.args for node in gm.graph.nodes if node.target is check_shape]
    shapes = {words: given.meta["val"].shape for given, _, words in checks}
    return [
        (leaf, shapes[words])
        for name, given in bind_arguments(module, inputs).arguments.items()
        for path, leaf in pytree.tree_flatten_with_path(given)[0]
        if (words := words_for(name, path)) in shapes
    ]


def _resized(traced: _Traced, inputs: ExampleInputs) -> ExampleInputs | None:
    """The inputs with other sizes where they are dynamic; None where a size is no symbol of its own."""
    sizes: dict[str, int] = {}
    drawn: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for tensor, shape in traced:
        wanted = []
        for size, now in zip(shape, tensor.shape, strict=True):
            if fixed_size(size) is None and not str(size).isidentifier():
                return None
            # An odd size: what code asks of sizes most is whether they are even.
            other = min(max(now // 2, 2), _TRIAL_SIZE) | 1
            wanted.append(sizes.setdefault(str(size), other) if fixed_size(size) is None else now)
        drawn[id(tensor)] = _drawn(wanted, tensor, generator)
    return inputs.map(lambda tensor: drawn.get(id(tensor), tensor))


def _drawn(sizes: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return torch.randn(tuple(sizes), generator=generator).to(like.device, like.dtype)
    # An index of any table; and a mask that lets everything through.
    return torch.full(tuple(sizes), like.dtype == torch.bool, dtype=like.dtype, device=like.device)


def _narrowed(inputs: ExampleInputs, traced: _Traced, symbol: str) -> ExampleInputs:
    """The inputs with a size of 1 wherever a trace has this symbol."""

    def narrow(tensor: Tensor) -> Tensor:
        dims = {dim for given, shape in traced if given is tensor for dim, s in enumerate(shape) if str(s) == symbol}
        for dim in dims:
            tensor = tensor.narrow(dim, 0, 1)
        return tensor

    return inputs.map(narrow)


def _same_outputs(gm: fx.GraphModule, model: nn.Module, inputs: ExampleInputs) -> bool:
    for training in (True, False):
        ours, theirs = (outcome_of(module, inputs, training) for module in (model, gm))
        if ours.problem is not None or theirs.problem is not None or not equal_inside(ours.outputs, theirs.outputs):
            return False
    return True
