"""The result: when it is true, and what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import fx

from repl_fx.export import Difference, Verification, verify_onnx
from repl_fx.export.difference import measure, tolerance_for
from tests.export.subjects import X


def same(*numbers: float) -> Difference:
    """The row of an output that is equal."""
    tensor = torch.tensor(numbers)
    return measure("y", 2, tensor, tensor.numpy(), tolerance_for(tensor.dtype))


def test_nothing_compared_is_not_equivalent() -> None:
    assert not Verification(rows=())
    empty = same()
    assert not Verification(rows=(empty,))
    assert "nothing was compared" in Verification(rows=(empty,)).summary()


def test_what_was_skipped_is_said_with_the_reason() -> None:
    skipped = {"output cache": "a NoneType, not a tensor", "batch 1": "the file takes 3"}
    check = Verification(rows=(same(1.0),), skipped=skipped)
    said = "; skipped: output cache: a NoneType, not a tensor; batch 1: the file takes 3"
    assert check and check.summary().endswith(said)
    assert Verification(rows=(same(1.0),), skipped=skipped, failures=("no output",)).summary().endswith(said)


def test_json_is_json(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(exported[0], exported[1], (X,), per_layer=True)
    data = json.loads(json.dumps(check.to_json(), allow_nan=False))
    assert data["equivalent"] is True and len(data["rows"]) == 9 and len(data["layers"]) == 4
    broken = Verification(rows=(same(math.nan),))
    assert json.loads(json.dumps(broken.to_json(), allow_nan=False))["rows"][0]["max_abs"] == "inf"


def test_a_tolerance_of_numpys_is_written_as_a_number() -> None:
    check = Verification(rows=(same(1.0),), settings={"rtol": np.float64(0.5), "atol": np.float32(0.25)})
    settings = json.loads(json.dumps(check.to_json(), allow_nan=False))["settings"]
    assert settings == {"rtol": 0.5, "atol": 0.25}
