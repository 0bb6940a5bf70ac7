"""Run a module and an ONNX file on the same inputs and compare all outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repl_fx.errors import ForeignError, first_line, foreign_code
from repl_fx.export.difference import (
    IN_DOUBLE,
    MOST_ROUNDING,
    TOLERANCES,
    Difference,
    Tolerance,
    at_sizes,
    measure,
    tolerance_for,
    widened,
)
from repl_fx.export.session import OnnxSession, pair_by_position
from repl_fx.export.tensors import FlatInputs, file_names, name_outputs
from repl_fx.graph.captured import in_double_precision
from repl_fx.graph.kinds import dtype_name
from repl_fx.running.untouched import untouched


class ModelComparison:
    """Differences at the sizes that were run.

    Args:
        session: the ONNX file.
        module: in eval mode, on the CPU.
        rtol, atol: in place of those of `TOLERANCES`, where not None.

    Attributes:
        rows, failures, skipped, notes: as those of a `Verification`.
    """

    def __init__(
        self, session: OnnxSession, module: nn.Module, rtol: float | None = None, atol: float | None = None
    ) -> None:
        self.session = session
        self.module = module
        self.rtol, self.atol = rtol, atol
        self.rows: list[Difference] = []
        self.failures: dict[str, None] = {}
        self.skipped: dict[str, str] = {}
        self.notes: dict[str, None] = {}

    @property
    def passed(self) -> bool:
        """Tell whether nothing differed so far."""
        return not self.failures and all(row.passed for row in self.rows)

    def run(self, batch: int, inputs: FlatInputs, sizes: str = "", *, numbers: bool = False) -> str | None:
        """Compare all outputs on these inputs; returns why that cannot be done, if it cannot.

        Args:
            batch, sizes: of the inputs, as those of a `Difference`.
            numbers: whether inputs for which the module returns NaN are none to compare on.
        """
        at = at_sizes(batch, sizes)
        fixed = self.session.fixed_dimension(inputs)
        if fixed:
            return fixed
        try:
            # Every run begins with the state that was exported, whatever a forward changes of it.
            with untouched(self.module, buffers=True, parameters=True), foreign_code():
                expected, others = name_outputs(inputs.given.map(torch.clone).passed_to(self.module))
                expected = {name: tensor.clone() for name, tensor in expected.items()}
        except ForeignError as failed:
            return f"the module itself fails: {first_line(failed.problem)}"
        if numbers and any(bool(tensor.isnan().any()) for tensor in expected.values()):
            return "the module itself returns NaN"
        self.skipped.update({f"output {name}": f"a {kind}, not a tensor" for name, kind in others.items()})
        try:
            with foreign_code():
                found = self.session.run(inputs)
        except ForeignError as failed:
            self.failures[f"ONNX Runtime fails at {at}: {first_line(failed.problem)}"] = None
            return None
        named = zip(expected, file_names(expected, inputs.names), strict=True)
        theirs = {name: own if own in found or name not in found else name for name, own in named}
        self._pair(theirs, expected, found)
        extra = [name for name in found if name not in theirs.values()]
        if extra and set(theirs.values()) <= set(found):
            counts = f"the file has {len(found)} outputs, the module {len(expected)}"
            self.failures[f"{counts}: it does not return {', '.join(extra)}"] = None
        exact = functools.cache(lambda: self._exact(inputs))
        for name, tensor in expected.items():
            value: Any = found.get(theirs[name])
            failure = self._mismatch(name, at, tensor, value)
            if failure is None:
                tolerance = tolerance_for(tensor.dtype, self.rtol, self.atol)
                row = measure(name, batch, tensor, value, tolerance, sizes)
                if not row.passed and self.rtol is None and self.atol is None:
                    row = self._wider(row, tensor, value, tolerance, exact)
                self.rows.append(row)
            else:
                self.failures[failure] = None
        return None

    def _wider(
        self,
        row: Difference,
        expected: Tensor,
        value: np.ndarray[Any, Any],
        tolerance: Tolerance,
        exact: Callable[[], Mapping[str, Tensor]],
    ) -> Difference:
        """The difference again, by a tolerance that allows for the rounding of this model, or of numbers in ONNX."""
        name = row.output
        if expected.dtype in MOST_ROUNDING and name in exact():
            wider = widened(tolerance, expected, exact()[name])
            why = "three times what PyTorch's own result is from float64's"
        elif expected.dtype in (torch.float64, torch.complex128):
            wider, why = IN_DOUBLE, "as ONNX keeps the attributes of operators in float32"
        else:
            return row
        again = measure(name, row.batch, expected, value, wider, row.sizes)
        if wider is tolerance or not again.passed:
            return row
        self.notes[f"{name} at {row.at}: tolerance {wider.atol:.1e} of the scale, {why}"] = None
        return again

    def _pair(self, theirs: dict[str, str], expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> None:
        """Take outputs by position where the file has names of its own, and as many outputs of the same shapes."""
        if set(theirs.values()) <= set(found):
            return
        paired = pair_by_position(list(found), list(theirs.values()))
        pairs = zip(expected.items(), found.values(), strict=False)
        if paired is None or any(self._mismatch(name, "", tensor, value) for (name, tensor), value in pairs):
            return
        theirs.update(zip(theirs, paired, strict=True))
        self.notes[f"outputs compared by position: the file calls them {', '.join(found)}"] = None

    def _exact(self, inputs: FlatInputs) -> dict[str, Tensor]:
        """The outputs in double precision; none where the model insists on single or half."""
        doubled = inputs.given.map(lambda t: t.double() if t.dtype in MOST_ROUNDING else t.clone())
        try:
            with foreign_code():
                outputs = name_outputs(doubled.passed_to(in_double_precision(self.module, MOST_ROUNDING)))[0]
        except ForeignError:
            # The module may cast to one of them on its way.
            return {}
        return outputs

    def _mismatch(self, name: str, at: str, expected: Tensor, value: Any) -> str | None:
        """Why two outputs cannot be subtracted, if they cannot."""
        if value is None:
            return f"the file has no output {name!r}, it has {', '.join(self.session.outputs)}"
        if not isinstance(value, np.ndarray):
            return f"output {name!r} is a {type(value).__name__} in the file, not a tensor"
        if tuple(expected.shape) != value.shape:
            ours, theirs = list(expected.shape), list(value.shape)
            return f"output {name!r} at {at} is {ours} in PyTorch, {theirs} in ONNX"
        dtype = dtype_name(expected.dtype)
        if expected.is_floating_point() and expected.dtype not in TOLERANCES:
            return f"output {name!r} is {dtype}, for which there is no tolerance; use float32"
        if dtype != value.dtype.name:
            return f"output {name!r} is {dtype} in PyTorch, {value.dtype.name} in ONNX"
        return None
