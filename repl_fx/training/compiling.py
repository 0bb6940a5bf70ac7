"""Compiling the model of a run: block by block, so that blocks of one kind are compiled once."""

from __future__ import annotations

from typing import Any

import torch
import torch.compiler.config
from torch import fx, nn

from repl_fx.training.sharding import units_of

# Of a block: in training, and in evaluation, for one size of the batch and for any.
_VERSIONS = 4


def compile_(model: nn.Module, **options: Any) -> int:
    """Compile each block of a model in place on its own, and any other model whole; in place.

    torch.compile finds what it made for one block fit for the next one of the same kind; surrogates that do the same
    are of one kind (`SurrogateBlock.compile`).

    Args:
        options: of torch.compile.

    Returns:
        How many modules are compiled when they are called.
    """
    blocks = () if isinstance(model, fx.GraphModule) else units_of(model)
    if blocks:
        # All are calls of two functions, of which torch.compile makes 8 versions, and runs the rest as it is.
        limit = torch.compiler.config.recompile_limit
        torch.compiler.config.recompile_limit = max(limit, _VERSIONS * len(blocks))
    # The empty path is that of the model itself.
    paths = blocks or ("",)
    for path in paths:
        model.get_submodule(path).compile(**options)
    return len(paths)
