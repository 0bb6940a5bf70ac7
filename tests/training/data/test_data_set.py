"""Data sets as they are put together: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, DataRequest, Tensors, length


def split(n: int = 4, *, inputs: Tensor | None = None, targets: Tensor | None = None) -> Tensors:
    return Tensors(
        torch.zeros(n, 1, 2, 2, dtype=torch.uint8) if inputs is None else inputs,
        torch.arange(n) % 2 if targets is None else targets,
    )


def data(**changed: Any) -> Data:
    arguments: dict[str, Any] = {
        "name": "made",
        "task": "classification",
        "classes": 2,
        "shape": (1, 2, 2),
        "train": split(),
        "test": split(2),
        **changed,
    }
    return Data(**arguments)


def test_a_data_set_says_what_it_is() -> None:
    assert str(data(mean=(0.5,), std=(0.1,))) == "made: 4 + 2 of 1x2x2, 2 classes"


NAN = torch.zeros(4, 1, 2, 2)
NAN[2, 0, 1, 0] = torch.nan


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "regression"}, "made: task is 'regression'; wanted is classification, language-modelling, seg"),
        ({"classes": 1}, "made: 1 class; at least 2"),
        ({"mean": (0.5,)}, "made: 1 means and 0 deviations"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "made: 3 means and 3 deviations"),
        ({"test": split(0)}, "made: test is empty"),
        ({"train": split(inputs=torch.zeros(4, 1, 2, 2).double())}, "train: inputs are torch.float64"),
        ({"train": split(targets=torch.zeros(4))}, "train: targets are torch.float32; give an int64 tensor"),
        ({"train": split(targets=torch.zeros(3).long())}, "train: 4 inputs but 3 targets"),
        ({"shape": (1, 2, 3)}, r"train: inputs are of shape \(1, 2, 2\); the data set's is \(1, 2, 3\)"),
        ({"train": split(targets=torch.zeros(4, 1).long())}, r"train: targets are of shape \(4, 1\); wanted is \(4,\)"),
        (
            {"task": "language-modelling"},
            r"train: targets are of shape \(4,\); wanted is \(4, 1, 2, 2\)",
        ),
        ({"test": split(targets=torch.tensor([0, 1, 2, 0]))}, "test: label 2 is out of range; labels are 0 to 1"),
        ({"test": split(targets=torch.tensor([0, -1, 1, 0]))}, "test: label -1 is out of range"),
        ({"task": "segmentation"}, r"train: targets are of shape \(4,\); wanted is \(4, 2, 2\)"),
        (
            {"task": "segmentation", "train": split(targets=torch.full((4, 2, 2), 2))},
            "train: label 2 is out of range; labels are 0 to 1, and 255 for none",
        ),
        (
            {"task": "segmentation", "train": split(targets=torch.full((4, 2, 2), 255))},
            "train: no pixel has a class, all are 255; give masks of classes",
        ),
        ({"task": "detection"}, "train is tensors; give a Dataset of"),
        ({"train": split(inputs=NAN)}, r"train: inputs hold nan at \(2, 0, 1, 0\)"),
    ],
)
def test_what_cannot_be_is_refused_on_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        data(**changed)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"context": 0}, "context is 0"),
        ({"size": 0}, "size is 0"),
    ],
)
def test_requests_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        DataRequest("digits", "", Path("."), **changed)


def test_a_stream_has_no_length() -> None:
    class Stream(torch.utils.data.Dataset[tuple[Tensor, int]]):
        pass

    assert length(split(3)) == 3
    with pytest.raises(BadInput, match="a split of type Stream has no samples by number"):
        length(Stream())
