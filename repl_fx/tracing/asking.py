"""The code that asks: of all frames that a question of a forward comes through, those of the model.

model's forward -> torch.is_grad_enabled        the forward asks
model's forward -> a layer of torch's -> …      torch asks, and answers for itself
model's forward -> contextlib -> …              the forward's is the line to name
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from os.path import exists
from types import FrameType
from typing import Any

_MACHINERY = frozenset({"torch", "repl_fx"})
_NO_MODELS = _MACHINERY | sys.stdlib_module_names
# Methods of tensors that are Python code of torch's, and hand the question on.
HANDED_ON = ("storage", "storage_type", "is_shared", "dim_order")
# The modes of a trace, which see a function before it runs, what hands it to them, and numbers without a value.
_MODES = ("__torch_function__", "__torch_dispatch__", "watch", "handle_torch_function", "_ask", *HANDED_ON)


def module_of(frame: FrameType) -> str:
    """The name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__"))


def is_machinery(frame: FrameType | None) -> bool:
    """Tell whether a frame runs code of torch's or of this package, and not of a model's or the user's."""
    return frame is not None and module_of(frame).split(".")[0] in _MACHINERY


def is_library(frame: FrameType) -> bool:
    """Tell whether a frame runs code of torch's, Python's or this package's."""
    return module_of(frame).split(".")[0] in _NO_MODELS


def is_models_code(frame: FrameType) -> bool:
    """Tell whether a frame runs code of a file that is neither torch's, Python's nor this package's."""
    return not is_library(frame) and exists(frame.f_code.co_filename)


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def asking_code() -> FrameType | None:
    """The code that called the function which asks this, past the modes of a trace; None where it is machinery."""
    frame = next((seen for seen in outwards(sys._getframe(2)) if seen.f_code.co_name not in _MODES), None)
    return None if is_machinery(frame) else frame


def line_of(frame: FrameType) -> str:
    """The file and the line that a frame runs."""
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def first_argument(frame: FrameType) -> Any:
    """The object that the method of a frame was called on, where it is one of an object."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
