"""One export, and what the next is told of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from repl_fx.errors import CaptureError
from repl_fx.tracing.attempt import Learned, each_call_traced
from repl_fx.tracing.capture import capture, check_capture
from tests.tracing.nets import info_of


def net() -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)))


def test_a_capture_says_how_many_calls_are_copies() -> None:
    info = info_of(capture(net(), (torch.randn(2, 8),)))
    assert (info.copies, info.unlike) == (2, "")


def test_inside_each_call_is_traced_by_itself_for_the_reason_given() -> None:
    with each_call_traced("they differed"):
        info = info_of(capture(net(), (torch.randn(2, 8),)))
    assert (info.copies, info.unlike) == (0, "they differed")
    assert info_of(capture(net(), (torch.randn(2, 8),))).unlike == ""


def test_equal_constants_have_one_name_sparse_ones_too() -> None:
    learned, sparse, nan = Learned(), torch.eye(2).to_sparse(), torch.full((2,), torch.nan)
    made = [sparse, torch.eye(2), torch.ones(2, 2).to_sparse(), sparse.clone(), torch.eye(2), nan]
    assert len({learned.name(tensor) for tensor in made}) == len(learned.tensors) == 4
    assert learned.name(nan.clone()) == learned.name(nan)


class Converts(nn.Module):
    """Converts a layer in its forward, as `convert` does."""

    def __init__(self, convert: Callable[[nn.Module, Tensor], nn.Module]) -> None:
        super().__init__()
        self.convert, self.layer = convert, nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.convert(self.layer, x)(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "convert",
    [
        lambda layer, x: layer.to(x.device),
        lambda layer, x: layer.to(x),
        lambda layer, x: layer.to(layer.weight.dtype),
        lambda layer, x: layer.float(),
    ],
)
def test_a_layer_may_be_converted_to_what_it_is(convert: Callable[[nn.Module, Tensor], nn.Module]) -> None:
    model, x = Converts(convert), torch.randn(3, 4)
    assert check_capture(model, capture(model, (x,)), (x,))


def test_a_layer_may_not_be_converted_to_another_precision() -> None:
    with pytest.raises(CaptureError, match="swap BatchNorm1d"):
        capture(Converts(lambda layer, x: layer.double()), (torch.randn(3, 4).double(),))


def test_conditions_on_sizes_are_not_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(constraints: object) -> None:
        raise NotImplementedError("The inequality, 14 - 14*(((x/2)//8)) < 0, cannot be solved")

    # As it does for VOLO.
    monkeypatch.setattr("torch.fx.experimental.symbolic_shapes.DimConstraints.solve", fail)
    gm = capture(nn.Conv2d(1, 2, 3), (torch.randn(2, 1, 8, 8),))
    assert gm(torch.randn(1, 1, 9, 5)).shape == (1, 2, 7, 3)
