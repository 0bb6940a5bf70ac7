"""Let libraries of models be imported where their C++ parts were built for another torch than the one installed.

The usual case is a library built for CUDA beside a torch for the CPU. `import repl_fx` puts a finder in front of those
that Python asks for modules; when one of these libraries is first imported, after that, its import is mended:

    torchvision     two of its operators are declared; timm and transformers import it
    torchaudio      a library file that does not load is taken for one that is not there

torchvision skips a library that does not load in silence, then fails at import with `operator torchvision::nms does
not exist`: it registers fake kernels for two operators that nobody has declared. Declared, they let the import through;
a call of one, which has no kernel, is a clear error.

torchaudio refuses to be imported where its library file is there and does not load, and transformers with it, which
imports it wherever it is installed. It works without the file, though: what needs the file (forced alignment, some
losses) then says so when it is called, and the models do not need it.

Nothing happens to a library that is imported already, or whose C++ parts load. This file imports nothing that takes
time: torch comes with the library.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The operators that the import of torchvision needs.
_DECLARED = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
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
            _MENDED[fullname](spec.loader)
        return spec


def _declare_operators(loader: Any) -> None:
    """Have the loader of torchvision declare the operators that its C++ library did not bring, before it runs."""
    create = loader.create_module

    def create_module(spec: ModuleSpec) -> ModuleType | None:
        import torch

        if not _library_loads(spec):
            for name in _DECLARED:
                if not hasattr(torch.ops.torchvision, name.partition("::")[2]):
                    torch.library.define(name, _SCHEMA)
        made: ModuleType | None = create(spec)
        return made

    loader.create_module = create_module


def _library_loads(package: ModuleSpec) -> bool:
    """Whether torchvision's own search for its library will succeed.

    Loading it here changes nothing: torchvision loads the same file again, and the second time is a no-op.
    """
    import torch

    library = importlib.machinery.PathFinder.find_spec("_C", package.submodule_search_locations or [])
    if library is None or library.origin is None:
        return False
    try:
        load: Any = torch.ops.load_library  # Without annotations in torch.
        load(library.origin)
    except (ImportError, OSError):
        return False
    return True


def _do_without_files(loader: Any) -> None:
    """Have the loader of torchaudio's module take a library file that does not load for one that is not there."""
    run = loader.exec_module

    def exec_module(utils: ModuleType) -> None:
        run(utils)
        # A later version that loads its files otherwise is left alone.
        if hasattr(utils, _FUNCTION):
            setattr(utils, _FUNCTION, _or_absent(getattr(utils, _FUNCTION)))

    loader.exec_module = exec_module


def _or_absent(load: Any) -> Any:
    def load_or_absent(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except (ImportError, OSError):
            return False

    return load_or_absent


# How the loader of a module is mended.
_MENDED: dict[str, Callable[[Any], None]] = {"torchvision": _declare_operators, _LOADER: _do_without_files}
