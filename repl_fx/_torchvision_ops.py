"""Let torchvision, and with it timm and transformers, import where its C++ operators do not load.

torchvision built for another torch (the usual case is a CUDA build beside a CPU torch) skips its C++ library in
silence, then fails at import with `operator torchvision::nms does not exist`: it registers fake kernels for two
operators that nobody has declared. Declared, they let the import through. They have no kernels, so calling one still
fails, with a clear error.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from typing import Any

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_DECLARED_BY_CPP = ("nms", "qnms")


def declare_missing_operators() -> tuple[str, ...]:
    """Declare what the import of torchvision needs and its C++ library did not bring.

    Call it before anything that may import torchvision. It does nothing where torchvision is missing, is imported
    already, or comes with a C++ library that loads.

    Returns:
        The qualified names of the operators declared by this call; empty where there was nothing to do.
    """
    if "torchvision" in sys.modules or _library_loads():
        return ()
    missing = tuple(f"torchvision::{name}" for name in _DECLARED_BY_CPP if not hasattr(torch.ops.torchvision, name))
    for name in missing:
        torch.library.define(name, _SCHEMA)
    return missing


def _library_loads() -> bool:
    """Whether torchvision's own search for its library will succeed, or there is no torchvision to search for it.

    Loading it here changes nothing: torchvision loads the same file again, and the second time is a no-op.
    """
    package = importlib.util.find_spec("torchvision")
    if package is None or package.submodule_search_locations is None:
        return True
    library = importlib.machinery.PathFinder.find_spec("_C", package.submodule_search_locations)
    if library is None or library.origin is None:
        return False
    try:
        load: Any = torch.ops.load_library  # Without annotations in torch.
        load(library.origin)
    except (ImportError, OSError):
        return False
    return True
