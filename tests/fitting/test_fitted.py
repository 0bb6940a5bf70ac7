"""How a fit reads, and as data."""

from __future__ import annotations

import json

import repl_fx
from repl_fx.fitting.fitted import Fit, FittedSurrogate


def test_lines_and_json() -> None:
    fitted = FittedSurrogate("blocks.1", "bottleneck", 24, 384, 1e-6, 0.25, 0.125)
    left = FittedSurrogate("blocks.3", "identity", left="nothing is in the place of the block")
    turned = FittedSurrogate("blocks.5", "linear", 6, 9, 0.01, 0.5, 0.25, "cosine", 0.2, 0.1)
    found = Fit((fitted, left, turned))
    assert str(found).splitlines() == [
        "blocks.1: 0.250 of the variance was lost, 0.125 is with bottleneck (24 numbers, 384 rows, ridge 1e-06)",
        "blocks.3: identity stays as it is: nothing is in the place of the block",
        "blocks.5: 0.500 of the variance was lost, 0.250 is with linear (6 numbers, 9 rows, ridge 0.01); "
        "cosine distance 0.2000 by least squares, 0.1000 now",
    ]
    data = json.loads(found.to_json())
    assert data["surrogates"][1]["before"] is None and data["surrogates"][2]["cosine_after"] == 0.1
    assert Fit(tuple(repl_fx.FittedSurrogate(**one) for one in data["surrogates"])) == found
