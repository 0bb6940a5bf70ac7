"""How long a call of a cut network takes, next to the original's."""

from __future__ import annotations

import tempfile
import time
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
from torch import nn

from benchmarks.compression.originals import Original, first_tensor
from repl_fx.export.onnx_model import export_onnx

# In a call that is timed, and how often it is.
INPUTS, WARM_UP, ROUNDS = 32, 2, 31


def time_ratio(own: Original, model: nn.Module) -> float:
    """The time of a call with 32 inputs in ONNX Runtime, as a share of that of the original; medians of turns.

    One thread of a CPU, in seconds that the process computes, which other load on the machine does not add to.

    Args:
        own: the original.
        model: on any device, where it stays.
    """
    x = next(own.batches())[0][:INPUTS].cpu().numpy()
    sessions = {"original": _original(own), "cut": _session(own, model)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(WARM_UP + ROUNDS):
        for name, session in sessions.items():
            took = _took(session, x)
            if turn >= WARM_UP:
                times[name].append(took)
    return median(times["cut"]) / median(times["original"])


@cache
def _original(own: Original) -> Any:
    return _session(own, own.model)


def _session(own: Original, model: nn.Module) -> Any:
    """The exported model, to be run."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    device = next(model.parameters()).device
    with tempfile.TemporaryDirectory() as place:
        file = export_onnx(model.eval(), Path(place) / "model.onnx", (first_tensor(own.inputs).to(device),))
        return onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])


def _took(session: Any, x: Any) -> float:
    begin = time.process_time()
    session.run(None, {session.get_inputs()[0].name: x})
    return time.process_time() - begin
