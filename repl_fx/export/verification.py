"""The result of comparing an ONNX file with a module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from repl_fx._torch import pytree
from repl_fx.display.html import Displayed
from repl_fx.display.numbers import several
from repl_fx.export.difference import Difference
from repl_fx.export.layers import LayerDifference
from repl_fx.export.weights import WeightComparison


@dataclass(frozen=True, repr=False)
class Verification(Displayed):
    """The comparison of a file with a module, and its result; true when they are equivalent.

    Attributes:
        rows: one for each output, batch size and combination of other sizes.
        layers: one for each inner value, in the order of execution, computed with the weights of the file; empty unless
            asked for.
        settings: runtime, versions, seed and batch sizes: what is needed to repeat the comparison.
        skipped: comparisons that could not be made, with the reason: outputs that are no tensors, batch sizes the file
            or the module itself does not take.
        failures: faults besides numbers: a missing output, another shape or type, a run that ONNX Runtime
            refuses.
        notes: where the tolerance was widened, inputs and outputs that were paired by position, and what the
            comparison of layers found out about a mismatch.
        weights: the comparison of the weights and constants in the file with the module's.
    """

    rows: tuple[Difference, ...]
    layers: tuple[LayerDifference, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    weights: WeightComparison = field(default_factory=WeightComparison)

    def __str__(self) -> str:
        return self.summary()

    def __bool__(self) -> bool:
        # A comparison of nothing proves nothing.
        compared = any(row.count for row in self.rows)
        return compared and self.same_outputs and bool(self.weights)

    @property
    def same_outputs(self) -> bool:
        """Tell whether no output differs."""
        return not self.failures and all(row.passed for row in self.rows)

    @property
    def first_difference(self) -> LayerDifference | None:
        """The first layer, in the order of execution, that differs."""
        return next((layer for layer in self.layers if not layer.passed), None)

    def summary(self) -> str:
        """Return the verdict in one line: the worst row, the weights, and where a difference begins, if known."""
        unlike = "; ".join(f"{name}: {why}" for name, why in self.skipped.items())
        beside = "".join(f"; {note}" for note in self.notes) + (f"; skipped: {unlike}" if unlike else "")
        if self:
            return f"equivalent: {self._agreement()}; {self.weights}{beside}"
        if self.failures:
            reason = self.failures[0]
        elif not any(row.count for row in self.rows):
            return f"not equivalent: nothing was compared ({unlike or 'no output has any number'})"
        elif self.same_outputs:
            return f"not equivalent: the outputs agree, but there are {self.weights}{beside}"
        else:
            reason = str(max((row for row in self.rows if not row.passed), key=_badness))
        layer = self.first_difference
        where = f"; begins at {layer.module or layer.node}" if layer else ""
        return f"not equivalent: {reason}{where}; {self.weights}{beside}"

    def _agreement(self) -> str:
        """The outputs and sizes that were compared, and the worst of the rows."""
        worst = max(self.rows, key=_badness)
        batches = ", ".join(str(batch) for batch in sorted({row.batch for row in self.rows}))
        sizes = "".join(f"; at {sizes}" for sizes in dict.fromkeys(row.sizes for row in self.rows) if sizes)
        outputs = several(len({row.output for row in self.rows}), "output")
        return (
            f"{outputs} at batch {batches}{sizes}; "
            f"max |difference| {worst.max_abs:.2e} at scale {worst.scale:.2e} ({worst.output})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; numbers that JSON cannot write (inf, nan) become strings."""
        # A tolerance may be given as a number of numpy's.
        fields = msgspec.to_builtins(self, enc_hook=lambda number: number.item())
        verdict = {"outputs_equal": self.same_outputs, "weights_equal": bool(self.weights)}
        plain = {"equivalent": bool(self), "summary": self.summary(), **verdict, **fields}
        words: dict[str, Any] = pytree.tree_map_only(float, lambda n: n if math.isfinite(n) else str(n), plain)
        return words


def _badness(row: Difference) -> float:
    return row.max_abs / row.scale if row.finite_torch and row.finite_onnx else math.inf
