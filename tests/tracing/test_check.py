"""The check of a capture can fail: on what differs, and on what only one of the two trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import CaptureError
from repl_fx.tracing.check import compare_steps

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Detached(nn.Linear):
    """A layer whose output has no history."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).detach()


class ForInference(nn.Module):
    """A model that computes inside torch.inference_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            made: Tensor = self.fc(x)
            return made


def test_what_only_one_of_them_trains() -> None:
    plain, detached = nn.Linear(4, 4), Detached(4, 4)
    detached.load_state_dict(plain.state_dict())
    assert compare_steps(detached, plain, (X,), {}, True) == tuple(
        f"training, step {step}: its outputs require a gradient, and those of the model do not" for step in (1, 2)
    )
    assert (
        "its outputs require no gradient, and those of the model do"
        in compare_steps(plain, detached, (X,), {}, True)[0]
    )
    assert compare_steps(plain, plain, (X,), {}, True) == compare_steps(detached, detached, (X,), {}, False) == ()


def test_inference_mode_inside_a_forward_is_not_taken_for_training() -> None:
    with pytest.raises(CaptureError, match="the forward calls inference_mode, which a graph would drop"):
        repl_fx.capture(ForInference(), (X,))
