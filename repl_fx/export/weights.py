"""The weights in an ONNX file beside those of a module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from repl_fx.graph.kinds import dtype_name

Arrays = Mapping[str, np.ndarray[Any, Any]]


def weights_of(file: Path) -> Arrays:
    """Read the weights of an ONNX file, by name, in the order of the file."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer}


def other_weights(file: Path, fresh: Arrays) -> Arrays:
    """Find the weights in a file that are not the module's: a file of another checkpoint looks like this.

    Args:
        file: an ONNX file.
        fresh: the weights of an export of the module as it is now. The module's own do not serve: the exporter folds
            normalisation into the weights before it, under their names.
    """
    stored = weights_of(file)
    return {name: stored[name] for name, ours in fresh.items() if name in stored and not _same(stored[name], ours)}


def with_weights(gm: fx.GraphModule, weights: Arrays, fresh: Arrays) -> fx.GraphModule:
    """Put the weights of a file into a copy of a graph.

    Args:
        gm: a folded graph on the CPU, which is not changed.
        weights: the values to put in.
        fresh: the graph's own weights, as exported; a weight is left as it is where the exporter wrote something else
            than the graph has.

    Returns:
        The copy, or the graph itself when there is nothing to put in.
    """
    if not weights:
        return gm
    result = copy.deepcopy(gm)
    state = {
        **dict(result.named_parameters(remove_duplicate=False)),
        **dict(result.named_buffers(remove_duplicate=False)),
    }
    for name, value in weights.items():
        if name in state and _holds(state[name], fresh[name]) and value.shape == fresh[name].shape:
            # The same tensor object, so that weights that are tied stay tied.
            state[name].data = torch.from_numpy(value.astype(fresh[name].dtype))
    return result


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return np.array_equal(a, b, equal_nan=b.dtype.kind == "f")


def _holds(tensor: Tensor, array: np.ndarray[Any, Any]) -> bool:
    # Of the kinds that numpy itself has: bfloat16 is no kind of float to it.
    return (
        dtype_name(tensor.dtype) == array.dtype.name
        and array.dtype.kind in "biuf"
        and _same(tensor.detach().numpy(), array)
    )
