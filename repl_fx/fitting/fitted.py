"""The outcome of a fit, for each surrogate."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from repl_fx.display.html import Displayed


@dataclass(frozen=True)
class FittedSurrogate:
    """One surrogate that was fitted, or stays as it is.

    Attributes:
        block: the block that it stands for, the last of its stretch.
        surrogate: its key.
        numbers: how many of its numbers were fitted; 0 where it stays as it is.
        rows: positions of all samples that it was fitted on, also where the fit was not kept; or values, where a number
            is for all channels.
        ridge: the share of a ridge, as used; see docs/fits.md.
        before, after: the mean squared distance of the stream behind the block from that of the original, by its
            variance: with the surrogate silent (`blend` and `narrow`, which never are: as they start), and fitted,
            measured on all batches with the finished surrogate.
        objective: of the fit; `cosine` for maps alone.
        cosine_before, cosine_after: with the objective `cosine`, the mean cosine distance of the same rows: of the fit
            by least squares, and of the other.
        left: why some or all of it stays as it is; empty where nothing does.
        held_out: as `after`, on batches that it was not fitted on, where they were given.
    """

    block: str
    surrogate: str
    numbers: int = 0
    rows: int = 0
    ridge: float = 0.0
    before: float | None = None
    after: float | None = None
    objective: str = "least-squares"
    cosine_before: float | None = None
    cosine_after: float | None = None
    left: str = ""
    held_out: float | None = None

    def __str__(self) -> str:
        if not self.numbers:
            return f"{self.block}: {self.surrogate} stays as it is: {self.left}"
        other = "" if self.held_out is None else f", {self.held_out:.3f} on held-out samples"
        text = (
            f"{self.block}: {self.before:.3f} of the variance was lost, "
            f"{self.after:.3f} is with {self.surrogate}{other} "
            f"({self.numbers:,} numbers, {self.rows:,} rows, ridge {self.ridge:g})"
        )
        if self.cosine_before is not None:
            text += f"; cosine distance {self.cosine_before:.4f} by least squares, {self.cosine_after:.4f} now"
        return f"{text}; {self.left}" if self.left else text


@dataclass(frozen=True, repr=False)
class Fit(Displayed):
    """The surrogates of a result, in program order."""

    surrogates: tuple[FittedSurrogate, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.surrogates))

    def to_json(self) -> str:
        """The fit as JSON text."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)
