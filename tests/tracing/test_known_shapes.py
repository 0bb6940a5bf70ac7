"""The kinds of results of plain layers are those of their calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.tracing.known_shapes import known_result

PICTURE = torch.randn(2, 8, 5, 4)
CASES = {
    "linear": (nn.Linear(8, 3), torch.randn(2, 5, 8)),
    "layer norm": (nn.LayerNorm(8), torch.randn(2, 5, 8)),
    "batch norm": (nn.BatchNorm2d(8), PICTURE),
    "batch norm, channels last": (nn.BatchNorm2d(8), PICTURE.contiguous(memory_format=torch.channels_last)),
    "activation": (nn.GELU(), PICTURE),
    "in place": (nn.ReLU(inplace=True), PICTURE.clone()),
    "identity": (nn.Identity(), PICTURE),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kind_of_a_result_is_known_without_a_call(case: str) -> None:
    layer, x = CASES[case]
    known, made = known_result(layer, (x,), {}), layer(x)
    assert known is not None
    assert (known.shape, known.stride(), known.dtype) == (made.shape, made.stride(), made.dtype)
    assert (known is x) is (made is x)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(8, 3), torch.randn(2, 8, 5).mT),
        (nn.Linear(8, 3).double(), torch.randn(2, 8)),
        (nn.Linear(8, 3), torch.randn(2, 7)),
        (nn.GELU(), PICTURE[:, :, ::2]),
        (nn.Conv2d(8, 8, 1), PICTURE),
        (nn.BatchNorm2d(7), PICTURE),
    ],
    ids=["not packed", "another dtype", "another width", "with gaps", "another layer", "other channels"],
)
def test_other_calls_have_to_run(layer: nn.Module, x: Tensor) -> None:
    assert known_result(layer, (x,), {}) is None
