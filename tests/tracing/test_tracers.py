"""The tracer refuses what a trace cannot hold, in one line with that of the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repl_fx.errors import CaptureError
from repl_fx.tracing.capture import capture
from tests.tracing.nets import Linear


class Refused(Linear):
    """Tells the tensors of a trace from others."""

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor:
            raise RuntimeError("this model must not be exported")
        return self.fc(x)  # type: ignore[no-any-return]


def test_an_obstacle_names_the_line_of_the_model_and_not_of_repl_fx() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Refused(), (torch.randn(3, 8),))
    (obstacle,) = caught.value.obstacles
    assert obstacle.startswith(f"torch.export: RuntimeError: this model must not be exported (at {__file__}, line ")


class Recorded(Linear):
    """Goes another way where autograd does not record, which an input or a caller decides."""

    def forward(self, x: Tensor) -> Tensor:
        recorded = self.fc(x).grad_fn
        return self.fc(x) * (2 if recorded is None else 3)  # type: ignore[no-any-return]


def test_a_way_that_the_caller_decides_is_refused() -> None:
    with pytest.raises(CaptureError, match="asks whether a tensor requires a gradient, which its input decides"):
        capture(Recorded(), (torch.randn(3, 8),))
