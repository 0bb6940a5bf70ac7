"""The classes of surrogates in place, and how they take their arguments."""

from __future__ import annotations

import inspect
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from repl_fx.in_place.surrogate_block import OWN, Argument, SurrogateBlock, surrogate_class, surrogate_graphs
from tests.captures import transformed
from tests.nets import TokenNet, TransformerBlock

X = torch.randn(2, 6, 16)


class _Block(nn.Module):
    def forward(self, x: Tensor, *more: Tensor, mask: Tensor | None = None, scale: float = 2.0, **flags: Any) -> Tensor:
        return x


def test_a_class_is_the_blocks_and_has_its_signature() -> None:
    kind = surrogate_class(_Block, False)
    assert surrogate_class(_Block, False) is kind
    assert surrogate_class(_Block, True) is not kind
    assert issubclass(kind, (_Block, SurrogateBlock))
    assert kind.__name__ == "_BlockSurrogate"
    assert inspect.signature(kind.forward) == inspect.signature(_Block.forward)


def test_arguments_are_bound_as_python_binds_them() -> None:
    bind = surrogate_class(_Block, False)._bind
    assert bind(1, 2, 3, mask=4, late=5) == {"x": 1, "more": (2, 3), "mask": 4, "scale": 2.0, "flags": {"late": 5}}
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        bind(mask=4)


def test_an_argument_is_found_and_has_its_fixed_sizes() -> None:
    argument = Argument(("more", 1), {1: 4}, 2)
    assert argument.of({"more": (X, x := torch.ones(3, 4))}, "b") is x
    with pytest.raises(RuntimeError, match=r"computes with more, which was a tensor .* and is None now"):
        argument.of({"more": (X,)}, "b")
    with pytest.raises(RuntimeError, match=r"captured with more of shape \(any, 4\), and is called with \(3, 5\)"):
        argument.of({"more": (X, torch.ones(3, 5))}, "b")


class _Frozen(TransformerBlock):
    """A block that keeps a norm in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm2.eval()
        return self


class _FrozenNet(TokenNet):
    def __init__(self) -> None:
        super().__init__(depth=3)
        self.blocks = nn.Sequential(*(_Frozen(16) for _ in range(3)))


@pytest.mark.parametrize("surrogate", ["bottleneck", "identity", "blend"])
def test_modes_are_those_that_the_block_keeps_also_where_a_child_is_gone(surrogate: str) -> None:
    model: Any = transformed(_FrozenNet(), (X,), surrogate=surrogate).model
    for mode in (True, False):
        block = model.train(mode).blocks[1]
        assert isinstance(block, SurrogateBlock)
        assert block.training is mode
        assert all(child.training is (mode and path != "norm2") for path, child in block.named_modules())


def test_values_in_the_place_of_parameters_are_gone_behind_the_call() -> None:
    model: Any = transformed(TokenNet(depth=3), (X,), surrogate="blend").model
    block = model.blocks[1]
    model(X)
    assert block.fc1._parameters["weight"] is None
    assert OWN in block._modules
    with pytest.raises(RuntimeError):
        block(X[..., :3])
    assert block.fc1._parameters["weight"] is None
    assert OWN in block._modules
    assert list(surrogate_graphs(model)) == ["blocks.1"]
