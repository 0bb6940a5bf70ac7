"""A capture comes back from its text without a trace, for the model that it was taken from."""

from __future__ import annotations

import pytest
import torch

from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.capture_parts import capture_parts
from repl_fx.tracing.parts.stored import as_data, read_data
from tests.nets import TokenNet


def test_a_capture_comes_back_for_the_same_model_alone() -> None:
    model, x = TokenNet(depth=3), torch.randn(2, 6, 16)
    captured = capture_parts(model, (x,))
    text = as_data(captured, {part.path for part in captured.parts})
    calls = {part.path: part.inputs for part in captured.parts}
    again = read_data(text, model, captured.inputs, calls)
    assert again is not None
    assert torch.equal(again.module.eval()(x), captured.module.eval()(x))
    assert read_data(text, TokenNet(depth=4), captured.inputs, calls) is None


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="Error"):
        read_data("{}", TokenNet(depth=3), ExampleInputs(), {})
