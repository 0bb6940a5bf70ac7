"""What all tasks share: logits in any outputs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.tasks.task import logits_of


def test_logits_are_found() -> None:
    logits = torch.randn(2, 3)
    for outputs in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, None), {"logits": (logits,)}):
        assert logits_of(outputs) is logits
    assert logits_of({"out": logits, "aux": torch.zeros(1)}, "out") is logits
    with pytest.raises(BadInput, match="the model returns a dict, which holds no logits"):
        logits_of({"boxes": logits})
