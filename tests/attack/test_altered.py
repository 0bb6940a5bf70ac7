"""Altered weights are found, clean files pass; `python -m benchmarks.attack --altered N` runs more of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from repl_fx.export import Verification, verifying
from repl_fx.export.weights import WeightComparison
from tests.attack.altered import SIZES, alterations, run_altered, subject


@pytest.mark.slow
def test_altered_files_are_found_by_their_weights() -> None:
    table = run_altered(0, 9, ("resnet",), clean=False)
    assert table.wrong == [] and table.altered.total() >= 20, str(table)
    assert {kind for kind, _ in table.altered} == {"one element", "scaled", "swapped"}
    # What this is about: the outputs of most of them are the same.
    assert table.seen.total() < table.found.total() == table.altered.total()
    assert "altered files" in str(table)


def test_a_verification_by_outputs_alone_is_judged_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = verifying.verify_file

    def blind(*given: Any, **known: Any) -> Verification:
        return replace(verified(*given, **known), weights=WeightComparison())

    monkeypatch.setattr(verifying, "verify_file", blind)
    table = run_altered(0, 40, ("resnet",), clean=False)
    assert len(table.wrong) == table.altered.total() - table.found.total() > 0


def test_every_initializer_is_changed_by_each_size() -> None:
    model = onnx.load(str(subject("resnet").file))
    made = list(alterations(model, np.random.default_rng(0)))
    floating = {n for n, tensor in enumerate(model.graph.initializer) if tensor.data_type == onnx.TensorProto.FLOAT}
    assert {number for _, _, number, _ in made} == floating
    assert {size for _, size, _, _ in made} == set(SIZES)
