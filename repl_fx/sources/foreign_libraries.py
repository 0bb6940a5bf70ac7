"""Let libraries of models be imported where their C++ parts were built for another torch than the one installed.

The usual case is a library built for CUDA beside a torch for the CPU. torchvision is dealt with in
`repl_fx._torchvision_ops`. torchaudio refuses to be imported where its library file is there and does not load, and
transformers with it, which imports it wherever it is installed. It works without the file, though: what needs the file
(forced alignment, some losses) then says so when it is called, and the models do not need it.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from repl_fx._torchvision_ops import declare_missing_operators

# The module of torchaudio that loads library files, and its function that does, which says False where there is none.
_LOADER, _FUNCTION = "torchaudio._extension.utils", "_load_lib"


def make_importable() -> None:
    """Prepare for the import of timm, torchvision, torchaudio, transformers and diffusers; call it before.

    It does nothing where their C++ parts load, and nothing to a library that is imported already.
    """
    declare_missing_operators()
    if "torchaudio" not in sys.modules and not any(isinstance(finder, _Loader) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Loader())


class _Loader(MetaPathFinder):
    """Lets torchaudio take a library file that does not load for one that is not there."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of the module that loads files, with a loader that does so; None for all other modules."""
        if fullname != _LOADER:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                # A later version that loads its files otherwise is left alone.
                if hasattr(module, _FUNCTION):
                    setattr(module, _FUNCTION, _or_absent(getattr(module, _FUNCTION)))

            loader.exec_module = exec_module
        return spec


def _or_absent(load: Any) -> Any:
    def load_or_absent(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except (ImportError, OSError):
            return False

    return load_or_absent
