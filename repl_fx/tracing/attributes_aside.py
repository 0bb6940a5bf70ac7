"""Attributes of modules put aside for a while, so that a read of one is seen.

Python looks an attribute up in the object and asks `__getattr__` where it is not there. An attribute that is taken out
of its module is read as before, a little slower, and each read comes by.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn

from repl_fx._torch import module_attributes
from repl_fx.running.code_names import names_in
from repl_fx.tracing.asking import first_argument, is_machinery, module_of, outwards

# Ways to an attribute on which a read is not seen.
PAST_LOOKUP = frozenset({"vars", "__dict__"})
Read = Callable[[nn.Module, str], None]


class AttributesAside:
    """The attributes that are out of their modules, while a trace goes on.

    Args:
        in_leaf: whether a leaf is running, whose reads are its own.
    """

    def __init__(self, in_leaf: Callable[[], bool]) -> None:
        self._in_leaf = in_leaf
        self._kept: dict[nn.Module, dict[str, tuple[Any, list[Read]]]] = {}

    @contextmanager
    def served(self) -> Iterator[None]:
        """Let code read what is aside."""

        def look(module: nn.Module, name: str) -> Any:
            value, readers = self._kept[module][name]
            if not self._in_leaf() and _counts(sys._getframe(2)):
                for read in readers:
                    read(module, name)
            return value

        def knows(module: nn.Module, name: str) -> bool:
            return module in self._kept and name in self._kept[module]

        with module_attributes(knows, look):
            yield

    def values(self, module: nn.Module) -> dict[str, Any]:
        """The attributes of a module that are aside."""
        return {name: value for name, (value, _) in self._kept.get(module, {}).items()}

    @contextmanager
    def kept(self, attributes: Iterable[tuple[nn.Module, str]], read: Read) -> Iterator[list[tuple[nn.Module, str]]]:
        """Put attributes aside, and tell `read` of each read of one by other code than torch's and this package's.

        Yields:
            Those of which a read is seen: others are found in another way, such as by a class of the module.
        """
        seen = [(module, name) for module, name in attributes if self._can_keep(module, name)]
        for module, name in seen:
            if name in vars(module):
                self._kept.setdefault(module, {})[name] = vars(module).pop(name), [read]
            else:
                self._kept[module][name][1].append(read)
        try:
            yield seen
        finally:
            for module, name in seen:
                value, readers = self._kept[module][name]
                readers.remove(read)
                if not readers:
                    del self._kept[module][name]
                    # Unless the forward has written another.
                    vars(module).setdefault(name, value)

    def _can_keep(self, module: nn.Module, name: str) -> bool:
        kind: Any = type(module)
        by_torch = kind.__getattr__ is nn.Module.__getattr__ and kind.__getattribute__ is object.__getattribute__
        there = name in vars(module) or name in self._kept.get(module, {})
        code = getattr(inspect.unwrap(kind.forward), "__code__", None)
        past = code is not None and not names_in(code).every.isdisjoint(PAST_LOOKUP)
        return there and by_torch and not (past or hasattr(kind, name))


def _counts(frame: FrameType | None) -> bool:
    """Tell whether a read is the model's: torch's machinery and this package look at modules too."""
    asking = next((seen for seen in outwards(frame) if not module_of(seen).startswith("torch.fx")), None)
    return not is_machinery(asking) or (asking is not None and module_of(asking).startswith("torch.nn."))


class ModeReads:
    """Notes in one mode whether a model's trace in the other would be another.

    Leaves read their mode when the graph runs. Where nothing else reads or sets a mode, one trace is that of both.

    Args:
        pinned: modules that the model keeps in one mode, which may be read.

    Attributes:
        seen: some other code of the model reads or sets the mode of a module.
        asked: the modules whose modes the code of a class reads, by their paths inside a module of that class: an empty
            one is its own. None stands for a module outside.
    """

    def __init__(self, model: nn.Module, aside: AttributesAside, pinned: Collection[nn.Module] = ()) -> None:
        self.seen = False
        self.asked: defaultdict[type, set[str | None]] = defaultdict(set)
        self._paths = {module: path for path, module in model.named_modules()}
        self._modules = list(self._paths)
        self._aside = aside
        self._pinned = pinned

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what a trace does inside."""

        def read(module: nn.Module, name: str) -> None:
            if module not in self._pinned:
                self.seen = True
                self._note(module)

        with self._aside.kept([(module, "training") for module in self._modules], read) as watched:
            self.seen = self.seen or len(watched) < len(self._modules)
            # A trace that fails says nothing of the other mode.
            yield
            self.seen = self.seen or any("training" in vars(module) for module in self._modules)

    def _note(self, module: nn.Module) -> None:
        """Note which module's code reads the mode of one: that of the innermost method that is running, or call."""
        frames = outwards(next((frame for frame in outwards(sys._getframe(1)) if not is_machinery(frame)), None))
        path = self._paths[module]
        for holder in map(first_argument, frames):
            if isinstance(holder, nn.Module) and holder in self._paths:
                around = self._paths[holder]
                inside = path if not around else path.removeprefix(around).removeprefix(".")
                self.asked[type(holder)].add(inside if path == f"{around}.{inside}".strip(".") else None)
                return
