"""What keeps a surrogate from a place in the source's own tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from tests.captures import transformed
from tests.nets import MlpBlock

X = torch.randn(2, 6, 8)


def _reasons(model: nn.Module, args: Sequence[Any] = (X,), surrogate: str = "bottleneck") -> list[str]:
    result = transformed(model, args, surrogate=surrogate)
    assert (result.in_place.model is None) == bool(result.in_place.refusals)
    return [refusal.reason for refusal in result.in_place.refusals]


class _Net(nn.Module):
    def __init__(self, block: type[nn.Module] = MlpBlock) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(8) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_plain_block_has_its_place() -> None:
    assert _reasons(_Net()) == []


def test_a_block_that_is_called_twice_has_none() -> None:
    class Twice(_Net):
        def forward(self, x: Tensor) -> Any:
            for block in self.blocks:
                x = block(x)
            return x, self.blocks[1](torch.zeros_like(x))

    model = Twice()
    try:
        reasons = _reasons(model)
    except repl_fx.NothingToReplace:
        pytest.skip("such blocks are no repeat")
    assert all("is called more than once" in reason or "no call of a single module" in reason for reason in reasons)
    assert reasons


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    class Named(MlpBlock):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.surrogate = "of something else"

    assert _reasons(_Net(Named)) == ["the module blocks.1 has an attribute surrogate already"]


def test_a_recurrent_layer_keeps_its_weights_twice() -> None:
    class Recurrent(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.rnn = nn.GRU(width, width, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.rnn(x)[0]  # type: ignore[no-any-return]

    assert _reasons(_Net(Recurrent), surrogate="blend") == [
        "the module blocks.1 has a recurrent layer, which keeps its weights twice"
    ]


class _Ramped(MlpBlock):
    """Adds what is made on the device of the capture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(x.shape[-1], device=x.device) / 100


def test_what_a_surrogate_makes_on_a_device_follows_the_model() -> None:
    x = torch.randn(2, 4, 16)
    result = transformed(nn.Sequential(*(_Ramped(16) for _ in range(3))), (x,), surrogate="bottleneck")
    model = result.in_place.model
    assert model is not None
    assert torch.equal(model(x), result.graph_module(x))
    with torch.no_grad():
        assert model.to("meta")(x.to("meta")).device.type == "meta"
