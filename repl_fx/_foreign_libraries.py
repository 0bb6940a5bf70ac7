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

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The operators that the import of torchvision needs.
_DECLARED = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# The function of torchaudio that loads a library file, and says False where there is none.
_FUNCTION = "_load_lib"


def make_importable() -> None:
    """Prepare for the import of timm, torchvision, torchaudio and transformers; `import repl_fx` calls it."""
    if not any(isinstance(finder, ForeignLibraries) for finder in sys.meta_path):
        sys.meta_path.insert(0, ForeignLibraries())


@contextmanager
def hushed(
    packages: Sequence[str], loggers: Sequence[str], messages: Sequence[str] = (), least: int = logging.ERROR
) -> Iterator[None]:
    """Drop warnings and log lines of libraries that users cannot act on, and nobody else's.

    Args:
        packages: whose warnings are dropped, with those of their modules.
        loggers: that tell of errors alone.
        messages: patterns of warnings that are dropped whoever gives them.
        least: level of log lines that are kept.
    """
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    try:
        for logger in named:
            logger.setLevel(least)
        with warnings.catch_warnings():
            for package in packages:
                warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
            for message in messages:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(named, levels, strict=True):
            logger.setLevel(level)


class ForeignLibraries(MetaPathFinder):
    """Finds modules of these libraries where others find them, and mends their import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that is to be mended, with a loader that does so; None for all other modules."""
        if fullname not in _MENDED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = partial(_MENDED[fullname], loader.exec_module)
        return spec


def _with_operators(run: Callable[[ModuleType], None], fakes: ModuleType) -> None:
    """Declare the operators that the C++ library, which was loaded before, did not bring."""
    import torch

    for name in _DECLARED:
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
    run(fakes)


def _without_files(run: Callable[[ModuleType], None], utils: ModuleType) -> None:
    """Take a library file that does not load for one that is not there."""
    run(utils)
    load: Any = getattr(utils, _FUNCTION, None)

    def load_or_absent(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **kwargs)
        except (ImportError, OSError):
            return False

    # A later version that loads its files otherwise is left alone.
    if load is not None:
        setattr(utils, _FUNCTION, load_or_absent)


# The modules whose run is mended: torchvision's that registers fake kernels, torchaudio's that loads files.
_MENDED: dict[str, Callable[[Callable[[ModuleType], None], ModuleType], None]] = {
    "torchvision._meta_registrations": _with_operators,
    "torchaudio._extension.utils": _without_files,
}
