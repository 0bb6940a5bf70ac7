"""Methods of modules that the code around them calls while a model runs: a graph in their place would not have them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from torch import nn


class MethodCalls:
    """Notes calls of methods on modules of a model that are not being called at that moment.

    Attributes:
        found: by the path of a module, the methods of it or of a module in it that code outside of it called.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, list[str]] = {}
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._names = {
            code: name for module in model.modules() for kind in type(module).__mro__ for name, code in _own_code(kind)
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note the calls made meanwhile by this thread."""
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        # Called for every call of a function: what is no method of these modules must be passed over at once.
        if event == "call" and frame.f_code in self._names:
            self._note(frame, self._names[frame.f_code])

    def _note(self, frame: FrameType, name: str) -> None:
        path = self._paths.get(id(_first_argument(frame)))
        if path is None:
            return
        running = set()
        caller = frame.f_back
        while caller is not None:
            if caller.f_code.co_name == "forward":
                running.add(self._paths.get(id(_first_argument(caller))))
            caller = caller.f_back
        steps = path.split(".") if path else []
        for depth in range(1, len(steps) + 1):
            around = ".".join(steps[:depth])
            # From inside, the graph has what the method did.
            if around not in running:
                called = ".".join([*steps[depth:], name])
                methods = self.found.setdefault(around, [])
                if called not in methods:
                    methods.append(called)


def _own_code(kind: type) -> Iterator[tuple[str, CodeType]]:
    """The methods and properties of a class that a graph module has not got."""
    if kind is nn.Module or kind is object:
        return
    for name, value in vars(kind).items():
        function = inspect.unwrap(value.fget if isinstance(value, property) and value.fget else value)
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType) and name != "forward" and not hasattr(nn.Module, name):
            yield name, code


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
