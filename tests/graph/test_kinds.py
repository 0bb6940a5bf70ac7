"""Words for tensors."""

from __future__ import annotations

import pytest
import torch

from repl_fx.graph.kinds import dtype_name, kind_of, of_torch


def test_words_for_dtypes_and_tensors() -> None:
    assert dtype_name(torch.bfloat16) == "bfloat16"
    assert kind_of(torch.zeros(2, 3)) == "float32[2, 3]"
    assert kind_of(torch.tensor(True)) == "bool[]"


def test_what_torch_has_under_a_name() -> None:
    assert of_torch("dtype", "float16") is torch.float16 and of_torch("layout", "strided") is torch.strided
    for kind, name in (("dtype", "nn"), ("dtype", "strided"), ("layout", "none")):
        with pytest.raises(ValueError, match=f"the {kind} '{name}'"):
            of_torch(kind, name)
