"""Which dimensions of the example inputs may vary: one answer for capture and for export.

Every dimension is asked for with `torch.export.Dim.AUTO`: torch.export keeps it symbolic where the model allows and
makes it static where the model does not, instead of refusing the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.export import Dim, ShapesCollection

from repl_fx.running.example_inputs import ExampleInputs


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
