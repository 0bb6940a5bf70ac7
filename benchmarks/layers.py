"""Per-layer verification of clean exports: no layer of them may differ.

    python -m benchmarks.layers              every model in examples/, as captured and with every second block replaced
    python -m benchmarks.layers --zoo 20     and that many models of the zoo, evenly spread over its lists

Exit status: 0; 1 where a layer or an output of a clean file differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import repl_fx
from repl_fx.sources import load_source

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Built = tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]


def examples() -> Iterator[tuple[str, Built]]:
    """The models in examples/, each on its own example inputs."""
    for file in sorted(EXAMPLES.glob("*.py")):
        if "def example_inputs" in file.read_text():
            source = load_source(str(file))
            yield file.stem, (source.model, source.args, source.kwargs)


def zoo(count: int) -> Iterator[tuple[str, Built]]:
    """Models of the zoo, at even distances in its lists."""
    from benchmarks.zoo_models import all_cases

    cases = all_cases()
    for number in range(count):
        case = cases[number * len(cases) // count]
        yield case.name, case.build()


def check(name: str, graph: nn.Module, built: Built) -> bool:
    """Export a graph, verify the file per layer, and print one line."""
    _, args, kwargs = built
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = repl_fx.export_onnx(graph, Path(scratch) / "model.onnx", args, kwargs)
            result = repl_fx.verify_onnx(graph, path, args, kwargs, per_layer=True)
        except repl_fx.ReplFxError as error:
            print(f"{name}: refused: {error}", flush=True)
            return True
    differing = [layer for layer in result.layers if not layer.passed]
    print(f"{name}: {len(result.layers)} layers, {len(differing)} differ; {result.summary()}", flush=True)
    return bool(result) and not differing


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify the models and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--zoo", type=int, default=0, metavar="N", help="models of the zoo")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    failed = 0
    for name, built in examples():
        model, args, kwargs = built
        failed += not check(name, repl_fx.capture(model, args, dict(kwargs)), built)
        failed += not check(f"{name}, replaced", repl_fx.transform(model, args, dict(kwargs)).graph_module, built)
    for name, built in zoo(options.zoo):
        try:
            graph = repl_fx.capture(built[0], built[1], dict(built[2]))
        except repl_fx.ReplFxError as error:
            print(f"{name}: refused: {error}", flush=True)
            continue
        failed += not check(name, graph, built)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
