"""ONNX out, and the proof that ONNX Runtime computes what PyTorch computes."""

from __future__ import annotations

from repl_fx.export.onnx_model import export_onnx
from repl_fx.export.verify import TOLERANCES, Difference, LayerDifference, Tolerance, Verification, verify_onnx

__all__ = [
    "TOLERANCES",
    "Difference",
    "LayerDifference",
    "Tolerance",
    "Verification",
    "export_onnx",
    "verify_onnx",
]
