"""Ways to run a module for its outputs: PyTorch eager and compiled, and ONNX Runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repl_fx.benchmarking.model_variants import Variant
from repl_fx.errors import BadInput, ReplFxError
from repl_fx.export.onnx_model import export_onnx
from repl_fx.export.session import OnnxSession
from repl_fx.export.tensors import flatten_inputs
from repl_fx.running.example_inputs import ExampleInputs

EAGER, COMPILED, ONNX = "eager", "compiled", "ONNX Runtime"
Call = Callable[[], object]


@dataclass(eq=False)
class Prepared:
    """A variant that is ready to run on one device, by any of the runtimes.

    Args:
        variant: the variant, on the host.
        exported_on: inputs for its export, with a batch of 2 or more.
        device: where it runs.
        place: a directory for its ONNX file.
    """

    variant: Variant
    exported_on: ExampleInputs
    device: torch.device
    place: Path

    def call(self, runtime: str, inputs: ExampleInputs) -> Call:
        """One forward pass by a runtime.

        Args:
            runtime: `EAGER`, `COMPILED` or `ONNX`.
            inputs: on the host; they are moved once, but for ONNX Runtime, which takes them from the host.

        Raises:
            BadInput, ExportError: ONNX Runtime cannot run the variant, or not on these inputs.
        """
        if runtime == ONNX:
            return self._by_onnx(inputs)
        moved = inputs.map(lambda tensor: tensor.to(self.device))
        # Compiled for these very sizes.
        module: Any = torch.compile(self.module, dynamic=False) if runtime == COMPILED else self.module
        # Not inference_mode: a model may keep a tensor for the next call.
        return torch.no_grad()(partial(moved.passed_to, module))

    @cached_property
    def module(self) -> nn.Module:
        """The module on the device, in evaluation mode; one for eager and compiled."""
        assert self.variant.inference is not None, "who measures inference leaves out what has none of its own"
        return copy.deepcopy(self.variant.inference).to(self.device).eval()

    def _by_onnx(self, inputs: ExampleInputs) -> Call:
        session = self._session
        if isinstance(session, ReplFxError):
            raise session
        assert self.variant.graph is not None
        flat = flatten_inputs(self.variant.graph, inputs)
        session.check_inputs(flat)
        obstacle = session.fixed_dimension(flat)
        if obstacle is not None:
            raise BadInput(obstacle)
        return partial(session.run, flat)

    @cached_property
    def _session(self) -> OnnxSession | ReplFxError:
        """The session; or the refusal of the export, which is not tried again for another batch."""
        if self.variant.graph is None:
            return BadInput("it was captured in parts, and the code around them has no ONNX form")
        file = self.place / "model.onnx"
        try:
            export_onnx(self.variant.graph, file, self.exported_on.args, self.exported_on.kwargs)
            return OnnxSession(file, self.device.type, torch.get_num_threads())
        except ReplFxError as problem:
            return problem
