"""What the server that every process of the zoo is forked from imports: seconds once instead of in each process.

A process that is forked from it never saw another model. The warm-up makes torch.export and the ONNX exporter import
what they import on their first call; it runs no backward pass and opens no ONNX Runtime session, because both start
threads, which a fork does not copy.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

import repl_fx


def _import_libraries() -> None:
    for name in (
        "timm",
        "torchvision",
        "torchaudio",
        "transformers",
        "diffusers",
        "onnxruntime",
        "onnxscript",
        "onnx",
        "safetensors.torch",
        "pytorch_lightning",
        "torchmetrics.classification",
    ):
        if find_spec(name.split(".")[0]) is not None:
            import_module(name)


def _warm_up() -> None:
    layers = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1)) for _ in range(3)]
    args = (torch.randn(2, 8),)
    with tempfile.TemporaryDirectory() as place:
        graph = repl_fx.capture(nn.Sequential(*layers), args)
        repl_fx.make_plan(graph, repl_fx.find_repeats(graph), surrogate="blend")
        repl_fx.export_onnx(graph, Path(place) / "model.onnx", args)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _import_libraries()
    # Where it fails, so will the models, each with its own record.
    with contextlib.suppress(Exception):
        _warm_up()
# The first setting of threads after a fork makes torch's pool anew. All threads of a backward pass set it, at once, and
# now and then the process ends: here it is done before they begin.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
gc.collect()
# What the server holds is never garbage; a collection in a child would only copy its pages.
gc.freeze()
