"""An ONNX file as ONNX Runtime runs it, on the CPU unless another device is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from torch import Tensor

from repl_fx.errors import BadInput, ExportError, first_line, foreign_code
from repl_fx.export.tensors import FlatInputs

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """An ONNX file opened in ONNX Runtime, with its graph optimisations on.

    Args:
        file: the ONNX file.
        device: where it runs: `cpu` or `cuda`. Inputs and outputs are the host's.
        threads: how many one operator may use on the CPU; ONNX Runtime's own choice by default.

    Raises:
        BadInput: the file does not exist.
        ExportError: ONNX Runtime cannot load the file, or has nothing for the device.
    """

    def __init__(self, file: Path, device: str = "cpu", threads: int = 0) -> None:
        if not file.is_file():
            raise BadInput(f"there is no ONNX file {file}")
        self.file = file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal only: what goes wrong comes as an exception too
        options.intra_op_num_threads = threads
        provider = _PROVIDERS[device]

        def refused(problem: Exception) -> ExportError:
            # Valid ONNX in a precision the CPU has no kernels for: float64 convolutions, bfloat16.
            hint = "; export the model in float32" if "NOT_IMPLEMENTED" in str(problem) else ""
            return ExportError(f"ONNX Runtime cannot load {file}: {first_line(problem)}{hint}")

        # By path, so that external data is found next to the file.
        with foreign_code(refused):
            self._session = onnxruntime.InferenceSession(
                str(file), sess_options=options, providers=list(dict.fromkeys((provider, _PROVIDERS["cpu"])))
            )
        # It goes on without a provider that cannot be loaded.
        if self._session.get_providers()[0] != provider:
            raise ExportError(f"ONNX Runtime has no {provider} that works here; install onnxruntime-gpu with its CUDA")
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self._source: dict[str, str] = {}

    def check_inputs(self, inputs: FlatInputs) -> str | None:
        """Find which input of the file is which of these: by name, or, with a note, by position where names differ.

        Raises:
            BadInput: inputs of other names that cannot be paired, or of another number of dimensions; names the input,
                and what the file has instead.
        """
        # An exporter may drop an input that the graph does not use, so the file may have fewer, but no others.
        names = [value.name for value in self._session.get_inputs()]
        note = None
        if not set(names) <= set(inputs.names):
            paired = pair_by_position(names, inputs.names)
            if paired is None:
                raise BadInput(
                    f"{self.file} takes the inputs {', '.join(names)}, the module {', '.join(inputs.names)}; "
                    "pass the example inputs the file was exported with"
                )
            self._source = paired
            note = f"inputs compared by position: the file calls them {', '.join(names)}"
        tensors = self._tensors(inputs)
        for value in self._session.get_inputs():
            if len(value.shape) != tensors[value.name].ndim:
                raise BadInput(
                    f"input {value.name!r} has {len(value.shape)} dimensions in {self.file}, "
                    f"{tensors[value.name].ndim} in the example inputs"
                )
        return note

    def _tensors(self, inputs: FlatInputs) -> dict[str, Tensor]:
        """The tensors by the names that the file has for its inputs."""
        given = dict(zip(inputs.names, inputs.tensors, strict=True))
        return {value.name: given[self._source.get(value.name, value.name)] for value in self._session.get_inputs()}

    @property
    def shapes(self) -> dict[str, list[int | str | None]]:
        """The sizes of the inputs, by the module's names for them: numbers, or names where they are dynamic."""
        return {self._source.get(value.name, value.name): list(value.shape) for value in self._session.get_inputs()}

    def fixed_dimension(self, inputs: FlatInputs) -> str | None:
        """Say which dimension of the file is fixed to another size than these inputs have, if one is."""
        tensors = self._tensors(inputs)
        for value in self._session.get_inputs():
            for position, (size, given) in enumerate(zip(value.shape, tensors[value.name].shape, strict=True)):
                if isinstance(size, int) and size != given:
                    place = f"dimension {position} of input {value.name!r}"
                    return f"{place} is fixed to {size} in the file, the inputs have {given}"
        return None

    def run(self, inputs: FlatInputs) -> dict[str, Any]:
        """Compute all outputs, by name: arrays, or the lists and dicts of ONNX types that are no tensors."""
        feed = {name: tensor.contiguous().numpy() for name, tensor in self._tensors(inputs).items()}
        return dict(zip(self.outputs, self._session.run(self.outputs, feed), strict=True))

    def settings(self) -> dict[str, str]:
        """Return what is needed to open the file in the same way again."""
        return {
            "file": self.file.name,
            "provider": self._session.get_providers()[0],
            "graph_optimization_level": self._session.get_session_options().graph_optimization_level.name,
            "onnxruntime": onnxruntime.__version__,
        }


def pair_by_position(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str] | None:
    """Pair the names in a file with a module's by their positions.

    Returns:
        The module's name for each of the file's; None where the counts differ, or a name that both have stands at two
        positions, so that positions say nothing.
    """
    if len(theirs) != len(ours) or any(
        a != b and (a in ours or b in theirs) for a, b in zip(theirs, ours, strict=True)
    ):
        return None
    return dict(zip(theirs, ours, strict=True))
