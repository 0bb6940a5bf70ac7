"""repl-fx: Replacement Learning for any PyTorch model, as a graph compiler.

The names below are imported when they are first asked for, so that `repl-fx --help` need not wait for torch.
From here on, torchvision and torchaudio, and with them timm and transformers, can be imported where their C++ parts do
not fit the torch that is installed.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from repl_fx._foreign_libraries import make_importable

if TYPE_CHECKING:
    from repl_fx.artifact import load, save
    from repl_fx.blocks import Block, Repeat
    from repl_fx.capture import capture, check_capture
    from repl_fx.errors import (
        ArtifactError,
        BadInput,
        CaptureError,
        ExportError,
        NotFoldable,
        NothingToReplace,
        OutputError,
        PlanMismatch,
        ReplFxError,
        SourceError,
        UnknownBlock,
        UnknownSurrogate,
        WeightsChanged,
    )
    from repl_fx.export import export_onnx, verify_onnx
    from repl_fx.partial import CapturedParts, capture_parts
    from repl_fx.passes.find_repeats import find_repeats
    from repl_fx.plan import Plan
    from repl_fx.surrogates import (
        Site,
        Surrogate,
        Synthesis,
        known_surrogates,
        register_surrogate,
        shared_synthesis,
    )
    from repl_fx.transform import TransformResult, fold, make_plan, transform

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "BadInput",
    "Block",
    "CaptureError",
    "CapturedParts",
    "ExportError",
    "NotFoldable",
    "NothingToReplace",
    "OutputError",
    "Plan",
    "PlanMismatch",
    "Repeat",
    "ReplFxError",
    "Site",
    "SourceError",
    "Surrogate",
    "Synthesis",
    "TransformResult",
    "UnknownBlock",
    "UnknownSurrogate",
    "WeightsChanged",
    "capture",
    "capture_parts",
    "check_capture",
    "export_onnx",
    "find_repeats",
    "fold",
    "known_surrogates",
    "load",
    "make_plan",
    "register_surrogate",
    "save",
    "shared_synthesis",
    "transform",
    "verify_onnx",
]

_HOME = {
    "ArtifactError": "repl_fx.errors",
    "BadInput": "repl_fx.errors",
    "Block": "repl_fx.blocks",
    "CaptureError": "repl_fx.errors",
    "CapturedParts": "repl_fx.partial",
    "ExportError": "repl_fx.errors",
    "NotFoldable": "repl_fx.errors",
    "NothingToReplace": "repl_fx.errors",
    "OutputError": "repl_fx.errors",
    "Plan": "repl_fx.plan",
    "PlanMismatch": "repl_fx.errors",
    "Repeat": "repl_fx.blocks",
    "ReplFxError": "repl_fx.errors",
    "Site": "repl_fx.surrogates",
    "SourceError": "repl_fx.errors",
    "Surrogate": "repl_fx.surrogates",
    "Synthesis": "repl_fx.surrogates",
    "TransformResult": "repl_fx.transform",
    "UnknownBlock": "repl_fx.errors",
    "UnknownSurrogate": "repl_fx.errors",
    "WeightsChanged": "repl_fx.errors",
    "capture": "repl_fx.capture",
    "capture_parts": "repl_fx.partial",
    "check_capture": "repl_fx.capture",
    "export_onnx": "repl_fx.export",
    "find_repeats": "repl_fx.passes.find_repeats",
    "fold": "repl_fx.transform",
    "known_surrogates": "repl_fx.surrogates",
    "load": "repl_fx.artifact",
    "make_plan": "repl_fx.transform",
    "register_surrogate": "repl_fx.surrogates",
    "save": "repl_fx.artifact",
    "shared_synthesis": "repl_fx.surrogates",
    "transform": "repl_fx.transform",
    "verify_onnx": "repl_fx.export",
}


class _Package(ModuleType):
    """Keeps `repl_fx.transform` and `repl_fx.capture` the functions they are named for.

    The import system would bind the modules of the same names to them.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = self.__dict__[name] = getattr(import_module(_HOME[name]), name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
make_importable()
