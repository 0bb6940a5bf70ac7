"""The grammar of input shapes, and tensors of a shape."""

from __future__ import annotations

import pytest
import torch

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.sources.input_shapes import InputShape, parse_input_shape, random_tensor, shape_at_batch
from tests.training.runs import Net, OneByOne


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("2x3x32x32", (InputShape((2, 3, 32, 32)),)),
        ("4", (InputShape((4,)),)),
        ("2x16:int64", (InputShape((2, 16), None, torch.int64),)),
        ("ids:2x16", (InputShape((2, 16), "ids"),)),
        (
            "2x4, ids:2x16:int64,mask:1x16:bool",
            (
                InputShape((2, 4)),
                InputShape((2, 16), "ids", torch.int64),
                InputShape((1, 16), "mask", torch.bool),
            ),
        ),
    ],
)
def test_input_shapes(text: str, shapes: tuple[InputShape, ...]) -> None:
    assert parse_input_shape(text) == shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no sizes|starts with neither"),
        ("2x", "starts with neither sizes nor the name"),
        ("-2x3", "starts with neither sizes nor the name"),
        ("2x3,,2x3", "starts with neither sizes nor the name"),
        ("ids", "'ids' has no sizes; write it like 2x3x224x224"),
        ("ids:int64", "'ids:int64' has no sizes"),
        ("ids:2x3:int64:x", "has no sizes"),
        ("2x0", "has a size of 0"),
        ("0x8", "has a size of 0"),
        (f"2x{10**19}", "has a size that no tensor can have"),
        ("1x3x8x8", "has a batch of 1"),
        ("2x3:int46", "no type 'int46'; did you mean int64, int16, int8\\?; known are float16"),
        ("a:2x3,a:2x3", "gives 'a' twice"),
        ("a:2x3,2x3", "an input without a name after one with"),
    ],
)
def test_bad_input_shapes(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_input_shape(text)


def test_random_tensors_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = random_tensor((50, 50), torch.int64, generator, low=3, high=7)
    assert set(ids.flatten().tolist()) == {3, 4, 5, 6}
    assert set(random_tensor((50,), torch.bool, generator).tolist()) == {False, True}
    assert set(random_tensor((50,), torch.int32, generator).tolist()) == {0, 1}
    assert random_tensor((2, 3), torch.bfloat16, generator).dtype == torch.bfloat16


def test_the_shape_of_another_batch_is_that_of_a_capture_that_takes_one_alone() -> None:
    found = repl_fx.capture_parts(OneByOne(), (torch.randn(2, 1, 4, 4),))
    assert shape_at_batch(found, 5) == "5x1x4x4:float32"
    assert shape_at_batch(found, 2) is None and shape_at_batch(found, 1) is None
    assert (
        shape_at_batch(repl_fx.capture_parts(OneByOne(), (), {"x": torch.randn(2, 1, 4, 4)}), 5) == "x:5x1x4x4:float32"
    )
    assert shape_at_batch(repl_fx.capture_parts(Net(), (torch.randn(2, 1, 4, 4),)), 5) is None
