"""ONNX out, and the proof that ONNX Runtime computes what PyTorch computes."""

from __future__ import annotations

from repl_fx.export.decoder import CachedDecoder
from repl_fx.export.difference import TOLERANCES, Difference, Tolerance
from repl_fx.export.layers import LayerDifference
from repl_fx.export.onnx_model import export_onnx, onnx_name
from repl_fx.export.verification import Verification
from repl_fx.export.verifying import verify_onnx

__all__ = [
    "TOLERANCES",
    "CachedDecoder",
    "Difference",
    "LayerDifference",
    "Tolerance",
    "Verification",
    "export_onnx",
    "onnx_name",
    "verify_onnx",
]
