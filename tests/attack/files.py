"""ONNX files of random networks: exported, verified by repl-fx, and run by the judge itself on new inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import repl_fx
from tests.attack.steps import Inputs, Snapshot, opened

# Largest difference allowed, as a fraction of the largest value of an output.
_ALLOWED = {torch.float64: 1e-7, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class FileDiffers(AssertionError):
    """An ONNX file that computes something else than the network."""


def judge_file(
    module: nn.Module, path: Path, example: Inputs, inputs: Callable[[int, int | None], Inputs], batch: int | None
) -> None:
    """Export a network, verify the file, and run it.

    Args:
        module: in any mode.
        path: of the file.
        example: inputs to export with.
        inputs: new ones for a step and a batch.
        batch: of the example inputs; None to run at their own size alone.

    Raises:
        FileDiffers: verification fails, or the judge's own run differs.
    """
    args, kwargs = example
    before = Snapshot(module)
    repl_fx.export_onnx(module, path, args, kwargs)
    if found := before.changes():
        raise FileDiffers(f"export changed what it was given: {'; '.join(found[:4])}")
    check = repl_fx.verify_onnx(module, path, args, kwargs)
    if found := before.changes():
        raise FileDiffers(f"verification changed what it was given: {'; '.join(found[:4])}")
    if not check:
        if not check.rows and all("does not support" in failure for failure in check.failures):
            # The kernels of ONNX Runtime lack what the standard has (GRU in double), and verification says so.
            raise repl_fx.ExportError(check.failures[0])
        worst = [f"{row.output} at batch {row.batch} by {row.max_abs:.3g}" for row in check.rows if not row.passed]
        raise FileDiffers(f"verification of a clean file fails: {'; '.join(worst)} {check.failures}")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for step, size in ((61, None), (62, None if batch is None else batch + 1)):
        given = inputs(step, size)
        expected = _outputs(module, given)
        before.restore()
        if expected is None:
            continue
        arrays = _run(session, given)
        if arrays is None:
            return
        if len(arrays) != len(expected):
            raise FileDiffers(f"the file has {len(arrays)} outputs, not {len(expected)}")
        for number, (tensor, array) in enumerate(zip(expected, arrays, strict=True)):
            _compare(f"output {number} at batch {size or batch}", tensor, array, module, given, number)


def _outputs(module: nn.Module, given: Inputs) -> list[Tensor] | None:
    training = module.training
    try:
        with torch.no_grad():
            leaves, _ = opened(module.eval()(*given[0], **given[1]))
    except (repl_fx.BadInput, RuntimeError):
        # A batch of another size that the network does not take.
        return None
    finally:
        module.train(training)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _run(session: Any, given: Inputs) -> list[Any] | None:
    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    wanted = session.get_inputs()
    if len(tensors) != len(wanted):
        # An input that nothing reads is left out of the file.
        return None
    if any(t.dtype == torch.bfloat16 for t in tensors) or any("bfloat16" in o.type for o in session.get_outputs()):
        # NumPy has no such type.
        return None
    return list(session.run(None, {i.name: t.detach().numpy() for i, t in zip(wanted, tensors, strict=True)}))


def _compare(what: str, tensor: Tensor, array: Any, module: nn.Module, given: Inputs, number: int) -> None:
    if tuple(tensor.shape) != tuple(array.shape):
        raise FileDiffers(f"{what} has shape {list(array.shape)}, not {list(tensor.shape)}")
    expected = tensor.detach().numpy()
    if tensor.dtype not in _ALLOWED:
        if not np.array_equal(expected, array):
            raise FileDiffers(f"{what} differs in whole numbers")
        return
    if not np.array_equal(np.isfinite(expected), np.isfinite(array)):
        raise FileDiffers(f"{what}: other values are not finite")
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)), 1e-3)
    with np.errstate(invalid="ignore"):
        distance = np.nan_to_num(np.abs(expected.astype(np.float64) - array.astype(np.float64)))
    apart = float(distance.max(initial=0.0)) / scale
    if apart > _ALLOWED[tensor.dtype] and apart > 20 * _rounding(tensor, module, given, number, scale):
        raise FileDiffers(f"{what} differs by {apart:.3g} of its scale")


def _rounding(tensor: Tensor, module: nn.Module, given: Inputs, number: int, scale: float) -> float:
    """How far PyTorch itself is from the same network in double precision; 0 where that cannot be run."""
    if tensor.dtype != torch.float32:
        return 0.0
    wide = copy.deepcopy(module).double()
    widened = pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, given)
    exact = _outputs(wide, widened)
    return 0.0 if exact is None else float((exact[number] - tensor.double()).abs().max()) / scale
