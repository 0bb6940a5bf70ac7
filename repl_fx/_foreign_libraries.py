"""Let libraries of models be imported where their C++ parts were built for another torch than the one installed.

The usual case is a library built for CUDA beside a torch for the CPU. `import repl_fx` puts a finder in front of those
that Python asks for modules; when one of these libraries is first imported, after that, its import is mended:

    torchvision     its operators are declared (`repl_fx._torchvision_ops`); timm and transformers import it
    torchaudio      a library file that does not load is taken for one that is not there

torchaudio refuses to be imported where its library file is there and does not load, and transformers with it, which
imports it wherever it is installed. It works without the file, though: what needs the file (forced alignment, some
losses) then says so when it is called, and the models do not need it.

Nothing happens to a library that is imported already, or whose C++ parts load. This file imports nothing that takes
time: torch comes with the library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The module of torchaudio that loads library files, and its function that does, which says False where there is none.
_LOADER, _FUNCTION = "torchaudio._extension.utils", "_load_lib"


def make_importable() -> None:
    """Prepare for the import of timm, torchvision, torchaudio and transformers; `import repl_fx` calls it."""
    if not any(isinstance(finder, ForeignLibraries) for finder in sys.meta_path):
        sys.meta_path.insert(0, ForeignLibraries())


class ForeignLibraries(MetaPathFinder):
    """Finds these libraries where others find them, and mends their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that is to be mended, with a loader that does so; None for all other modules."""
        if fullname not in _MENDED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            before, after = _MENDED[fullname]
            _around(spec.loader, before, after)
        return spec


def _around(loader: Any, before: Callable[[], Any], after: Callable[[ModuleType], None]) -> None:
    """Have a loader do something before and after it runs a module."""
    create, run = loader.create_module, loader.exec_module

    def create_module(spec: ModuleSpec) -> ModuleType | None:
        before()
        made: ModuleType | None = create(spec)
        return made

    def exec_module(module: ModuleType) -> None:
        run(module)
        after(module)

    loader.create_module, loader.exec_module = create_module, exec_module


def _declare_operators() -> None:
    from repl_fx._torchvision_ops import declare_missing_operators

    declare_missing_operators()


def _let_calls_through(torchvision: ModuleType) -> None:
    from repl_fx._torchvision_ops import let_calls_through

    let_calls_through()


def _do_without_files(utils: ModuleType) -> None:
    # A later version that loads its files otherwise is left alone.
    if hasattr(utils, _FUNCTION):
        setattr(utils, _FUNCTION, _or_absent(getattr(utils, _FUNCTION)))


def _or_absent(load: Any) -> Any:
    def load_or_absent(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except (ImportError, OSError):
            return False

    return load_or_absent


# What is done before and after a module is run.
_MENDED: dict[str, tuple[Callable[[], Any], Callable[[ModuleType], None]]] = {
    "torchvision": (_declare_operators, _let_calls_through),
    _LOADER: (lambda: None, _do_without_files),
}
