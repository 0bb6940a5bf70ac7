"""A capture comes back from its text without a trace, for the model that it was taken from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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


class DecodingHead(nn.Module):
    """A head with a layer that runs in evaluation alone, as a YOLO's does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.decode = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(x)
        return made if self.training else self.decode(made.softmax(-1))


@pytest.mark.slow
def test_layers_of_one_mode_alone_come_back() -> None:
    model, x = nn.Sequential(TokenNet(depth=3), DecodingHead()), torch.randn(2, 6, 16)
    captured = capture_parts(model, (x,))
    again = read_data(as_data(captured, {""}), model, captured.inputs, {"": captured.parts[0].inputs})
    assert again is not None
    for training in (True, False):
        assert torch.equal(again.module.train(training)(x), model.train(training)(x))


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="Error"):
        read_data("{}", TokenNet(depth=3), ExampleInputs(), {})
