"""The grammar of `--input-shape`, and tensors of the shapes it gives.

    SHAPES := INPUT ("," INPUT)*             one for each input
    INPUT  := [NAME ":"] SIZES [":" DTYPE]   with a name it is a keyword argument, without one a positional argument
    SIZES  := SIZE ("x" SIZE)*               positive; the first size of the first input, the batch, is at least 2
    DTYPE  := float16 | bfloat16 | float32 | float64 | int8 | uint8 | int16 | int32 | int64 | bool

    2x3x224x224                              one image batch
    ids:2x16:int64,mask:2x16:bool            two keyword arguments
    2x64,2x64:float64                        two positional arguments

Without DTYPE an input is float32; the inputs of a transformers model keep the type they have by default. Floats are
normal, booleans a fair coin, and integers are 0 or 1, which every embedding has a row for, unless the kind of the
source knows their range.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from repl_fx.errors import BadInput, close_matches
from repl_fx.graph.kinds import dtype_name
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import CapturedParts

_DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}
_SIZES = re.compile(r"[0-9]+(x[0-9]+)*", re.ASCII)
_LARGEST = 2**63 - 1
_EXAMPLE = "write it like 2x3x224x224 or ids:2x16:int64,mask:2x16:bool"


@dataclass(frozen=True)
class InputShape:
    """The shape of one input, the batch first; one without a name is positional, without a dtype it has the model's."""

    sizes: tuple[int, ...]
    name: str | None = None
    dtype: torch.dtype | None = None


def shape_at_batch(captured: CapturedParts, batch: int) -> str | None:
    """The shapes of a model's inputs at another batch, where its capture takes their batch alone; else None.

    They are for `--input-shape`, by which an artifact is built again.
    """
    inputs = captured.parts[0].inputs
    dynamic = captured.parts[0].graph_module.meta["capture"].dynamic
    if not captured.whole or batch < 2 or inputs.batch == batch or any(0 in dims for dims in dynamic.values()):
        return None
    if any(tensor.ndim and tensor.shape[0] != inputs.batch for tensor in inputs.tensors):
        return None
    return written_shapes(inputs, batch)


def written_shapes(inputs: ExampleInputs, batch: int) -> str | None:
    """The shapes of inputs in the grammar of this module, at a batch; None where some input is no tensor with one."""
    given = [("", value) for value in inputs.args] + [(f"{name}:", value) for name, value in inputs.kwargs.items()]
    if not all(isinstance(value, Tensor) and value.ndim for _, value in given):
        return None
    shapes = (f"{name}{'x'.join(map(str, (batch, *v.shape[1:])))}:{dtype_name(v.dtype)}" for name, v in given)
    return ",".join(shapes)


def parse_input_shape(text: str) -> tuple[InputShape, ...]:
    """Read shapes written in the grammar of this module."""
    shapes = tuple(_parse_input(part.strip(), text) for part in text.split(","))
    names = [shape.name for shape in shapes if shape.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"input shape {text!r} gives {name!r} twice; give each input once")
    if any(a.name is not None and b.name is None for a, b in pairwise(shapes)):
        raise BadInput(f"input shape {text!r} has an input without a name after one with; positional inputs come first")
    if shapes[0].sizes[0] < 2:
        raise BadInput(
            f"input shape {text!r} has a batch of 1, which capture would bake into the graph; "
            "make the first size 2 or more"
        )
    return shapes


def _parse_input(part: str, text: str) -> InputShape:
    fields = part.split(":")
    name = None if _SIZES.fullmatch(fields[0]) else fields.pop(0)
    if name is not None and not name.isidentifier():
        raise BadInput(f"input shape {text!r}: {part!r} starts with neither sizes nor the name of an input; {_EXAMPLE}")
    if not fields or not _SIZES.fullmatch(fields[0]) or len(fields) > 2:
        raise BadInput(f"input shape {text!r}: {part!r} has no sizes; {_EXAMPLE}")
    sizes = tuple(int(size) for size in fields[0].split("x"))
    if 0 in sizes:
        raise BadInput(f"input shape {text!r}: {part!r} has a size of 0; every size is at least 1")
    if max(sizes) > _LARGEST:
        raise BadInput(f"input shape {text!r}: {part!r} has a size that no tensor can have; {_EXAMPLE}")
    if len(fields) == 1:
        return InputShape(sizes, name)
    if fields[1] not in _DTYPES:
        close = close_matches(fields[1], _DTYPES)
        raise BadInput(f"input shape {text!r}: no type {fields[1]!r}{close}; known are {', '.join(_DTYPES)}")
    return InputShape(sizes, name, _DTYPES[fields[1]])


def random_tensor(
    sizes: Sequence[int], dtype: torch.dtype, generator: torch.Generator, *, low: int = 0, high: int = 2
) -> Tensor:
    """An example input on the CPU: normal floats, integers uniform in [low, high), or booleans of a fair coin."""
    if dtype.is_floating_point:
        return torch.randn(tuple(sizes), generator=generator, device="cpu").to(dtype)
    if dtype == torch.bool:
        low, high = 0, 2
    return torch.randint(low, high, tuple(sizes), generator=generator, device="cpu").to(dtype)
