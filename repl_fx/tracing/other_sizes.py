"""Whether a captured graph is right at other sizes than those it was traced with.

torch.export keeps a dimension dynamic when code asks whether it is even, and takes the answer for granted. Inside a
model that is captured in parts, where sizes come from eager code, the next call may well be odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from repl_fx._torch import fixed_size, pytree
from repl_fx.errors import ForeignError, foreign_code
from repl_fx.graph.captured import CapturedModule
from repl_fx.graph.runtime import check_shape
from repl_fx.graph.signature import bind_arguments, words_for
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import in_mode, untouched

# Other sizes are tried on inputs no larger than this along a dimension.
_TRIAL_SIZE = 193


def holds_at_other_sizes(module: nn.Module, gm: CapturedModule, inputs: ExampleInputs) -> bool:
    """Whether a graph computes what its source does at other sizes of the dimensions that stayed dynamic in it.

    Args:
        module: the source.
        gm: the graph captured from it.
        inputs: of the sizes it was traced with.

    Returns:
        False where it differs or fails; also where nothing can be said, because a size depends on others.
    """
    if not any(fixed_size(size) is None for size in _symbolic_sizes(gm)):
        return True
    resized = _resized(module, gm, inputs)
    if resized is None:
        return False
    results: list[Any] = []
    for candidate in (module, gm):
        with untouched(candidate, buffers=True), in_mode(candidate, False), torch.no_grad():
            try:
                with foreign_code():
                    results.append(pytree.tree_leaves(resized.passed_to(candidate)))
            except ForeignError:
                # Where the source does not take these sizes, there is nothing to be wrong about.
                return candidate is module
    close = [
        a.shape == b.shape and torch.allclose(a, b, equal_nan=True)
        for a, b in zip(*results, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    ]
    return all(close)


def _resized(module: nn.Module, gm: CapturedModule, inputs: ExampleInputs) -> ExampleInputs | None:
    """The inputs with other sizes where they are dynamic; None where a size is no symbol of its own."""
    shapes = {
        str(node.args[2]): node.args[0].meta["val"].shape
        for node in gm.graph.nodes
        if node.target is check_shape and isinstance(node.args[0], fx.Node)
    }
    sizes: dict[str, int] = {}
    tensors: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, given in bind_arguments(module, inputs).arguments.items():
        for path, leaf in pytree.tree_flatten_with_path(given)[0]:
            words = words_for(name, path)
            if not isinstance(leaf, Tensor) or words not in shapes:
                continue
            wanted = []
            for size, now in zip(shapes[words], leaf.shape, strict=True):
                if fixed_size(size) is None and not str(size).isidentifier():
                    return None
                # An odd size: what code asks of sizes most is whether they are even.
                other = min(max(now // 2, 2), _TRIAL_SIZE) | 1
                wanted.append(sizes.setdefault(str(size), other) if fixed_size(size) is None else now)
            tensors[id(leaf)] = _drawn(wanted, leaf, generator)
    return inputs.map(lambda tensor: tensors.get(id(tensor), tensor))


def _drawn(sizes: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    if like.is_floating_point():
        return torch.randn(tuple(sizes), generator=generator).to(like.device, like.dtype)
    # An index of any table; and a mask that lets everything through.
    return torch.full(tuple(sizes), like.dtype == torch.bool, dtype=like.dtype, device=like.device)


def _symbolic_sizes(gm: CapturedModule) -> list[Any]:
    nodes = [node.args[0] for node in gm.graph.nodes if node.target is check_shape]
    return [size for node in nodes if isinstance(node, fx.Node) for size in node.meta["val"].shape]
