"""Words for tensors."""

from __future__ import annotations

import torch

from repl_fx.graph.kinds import dtype_name, kind_of


def test_words_for_dtypes_and_tensors() -> None:
    assert dtype_name(torch.bfloat16) == "bfloat16"
    assert kind_of(torch.zeros(2, 3)) == "float32[2, 3]"
    assert kind_of(torch.tensor(True)) == "bool[]"
