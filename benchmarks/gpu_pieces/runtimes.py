"""The piece about ONNX Runtime: what its providers compute, and how fast, on the device."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import repl_fx
from benchmarks.gpu_pieces.networks import network
from benchmarks.gpu_pieces.setting import Record, Setting
from repl_fx.errors import ForeignError, foreign_code, one_line
from repl_fx.running.timing import Spread, interleaved, latency

BATCH, ROUNDS, WARM_UP = 32, 50, 5
PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "CPU": ("CPUExecutionProvider", {}),
    "CUDA": ("CUDAExecutionProvider", {"use_tf32": 0}),
    "TensorRT": ("TensorrtExecutionProvider", {}),
}


def runtimes(setting: Setting, name: str) -> Record:
    """Latency of the original and of the rewritten model, and the difference from PyTorch, by provider."""
    own = network(name, setting.scale)
    torch.manual_seed(0)
    batch = 2 if setting.toy else BATCH
    x = own.inputs(batch)
    original = own.build().eval()
    result = repl_fx.transform(original, (own.inputs(2),), every=2)
    models = {"original": repl_fx.capture(original, (own.inputs(2),)), "rewritten": repl_fx.fold(result.module)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, setting.alone():
        turns: dict[str, Callable[[], float]] = {}
        for form, module in models.items():
            module.eval()
            file = repl_fx.export_onnx(module, Path(place) / f"{form}.onnx", (own.inputs(2),))
            wanted = _computed(module, x)
            on_device = module.to(setting.device)
            turns[f"{form}, PyTorch"] = partial(
                latency, partial(_computed, on_device, x.to(setting.device)), setting.device
            )
            rows.append({"model": form, "runtime": "PyTorch"})
            for runtime in PROVIDERS:
                rows.append({"model": form, "runtime": runtime})
                session = _session(file, runtime, rows[-1])
                if session is not None:
                    feed = {session.get_inputs()[0].name: x.numpy()}
                    rows[-1]["difference"] = _difference(session.run(None, feed)[0], wanted)
                    call = _bound(session, feed, wanted) if runtime != "CPU" else partial(session.run, None, feed)
                    turns[f"{form}, {runtime}"] = partial(latency, call, torch.device("cpu"))
        rounds = interleaved(turns, 2 if setting.toy else ROUNDS, warm_up=WARM_UP, attempt=lambda name, turn: turn())
        seconds: dict[str, list[float]] = {turn: [] for turn in turns}
        for times in rounds:
            for turn, took in times.items():
                seconds[turn].append(took)
    for row in rows:
        spread = Spread.of(seconds.get(f"{row['model']}, {row['runtime']}", []))
        row["ms"] = None if spread is None else [1e3 * one for one in (spread.median, spread.least, spread.most)]
    return {"batch": batch, "rows": rows}


def _computed(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = module(x)
    return made


def _session(file: Path, runtime: str, row: dict[str, Any]) -> Any:
    """A session that runs on a provider; None where it does not load, which the row then says."""
    provider, settings = PROVIDERS[runtime]
    if provider not in onnxruntime.get_available_providers():
        row["reason"] = f"this build of onnxruntime has no {provider}"
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with foreign_code():
            # torch has loaded the libraries of CUDA, which those that pip installed are not found without.
            session = onnxruntime.InferenceSession(str(file), options, providers=[(provider, settings)])
    except ForeignError as failed:
        row["reason"] = one_line(failed.problem)
        return None
    if session.get_providers()[0] != provider:
        row["reason"] = f"{provider} does not load"
        return None
    return session


def _bound(session: Any, feed: dict[str, Any], wanted: Tensor) -> Callable[[], object]:
    """A call with inputs and outputs on the device."""
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0)

    def call() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return call


def _difference(found: Any, wanted: Tensor) -> float:
    """Largest difference from what PyTorch computed on the CPU, as a share of its largest value."""
    theirs = wanted.numpy().astype(np.float64)
    return float(np.abs(found.astype(np.float64) - theirs).max() / np.abs(theirs).max())
