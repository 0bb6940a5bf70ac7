"""What all tasks share: logits in any outputs, and labels that can be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from repl_fx.errors import BadInput
from repl_fx.training.tasks.task import logits_of, require_labels


def test_logits_are_found() -> None:
    logits = torch.randn(2, 3)
    for outputs in (logits, {"logits": logits}, SimpleNamespace(logits=logits), (logits, None), {"logits": (logits,)}):
        assert logits_of(outputs) is logits
    assert logits_of({"out": logits, "aux": torch.zeros(1)}, "out") is logits
    with pytest.raises(BadInput, match="the model returns a dict, which holds no logits"):
        logits_of({"boxes": logits})


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0.0, 1.0]), "mine: targets are torch.float32; give an int64 tensor"),
        ([0, 1], "mine: targets are a list"),
        (torch.tensor([[0, 1]]), r"mine: targets are of shape \(1, 2\); wanted is \(2,\)"),
        (torch.tensor([0, 3]), "mine: label 3 is out of range; labels are 0 to 2"),
        (torch.tensor([-1, 0]), "mine: label -1 is out of range"),
    ],
)
def test_targets_that_cannot_be_are_a_line(targets: Any, said: str) -> None:
    require_labels(torch.tensor([0, 2]), 3, (2,), "mine")
    with pytest.raises(BadInput, match=said):
        require_labels(targets, 3, (2,), "mine")
