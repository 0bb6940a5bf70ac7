"""The inference form of a rewritten model: one graph, or a module with graphs in it."""

from __future__ import annotations

from typing import overload

import torch
from torch import fx, nn

from repl_fx.arguments import require_module
from repl_fx.errors import BadInput
from repl_fx.graph.captured import own_tensors_
from repl_fx.passes.driver import run_passes
from repl_fx.passes.fold_surrogates import fold_surrogates
from repl_fx.rewriting.in_place.surrogate_block import surrogate_graphs
from repl_fx.tracing.parts.capture_parts import assemble, graphs_in


@overload
def fold(module: fx.GraphModule) -> fx.GraphModule: ...
@overload
def fold(module: nn.Module) -> nn.Module: ...
# Constants that were made in a caller's inference mode could be used nowhere else.
@torch.inference_mode(False)
def fold(module: nn.Module) -> nn.Module:
    """The inference form of a rewritten module: synthesised weights are constants in plain operators.

    Args:
        module: a rewritten graph module, or a module with rewritten graphs in it; it is not changed.

    Returns:
        A module without synthesis nodes that computes the same, with tensors of its own: where the original trains on,
        or the folded one becomes half precision, the other stays as it is.

    Raises:
        NotFoldable: see `repl_fx.passes.fold_surrogates`.
        BadInput: the argument is no module, or a model in place, which calls its surrogates as its own code says.
    """
    require_module("fold", module)
    if surrogate_graphs(module):
        raise BadInput(
            f"fold takes graphs, and this {type(module).__name__} has its surrogates in place; give result.module, or "
            "what load(directory, graph=True) returns"
        )
    graphs = {path: run_passes(graph, fold_surrogates).graph_module for path, graph in graphs_in(module).items()}
    folded = assemble(module, graphs)
    own_tensors_(folded)
    return folded
