"""Names and order of a graph's arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.graph.signature import bind_arguments
from repl_fx.running.example_inputs import ExampleInputs


class Model(nn.Module):
    def forward(self, a: Any, b: Any = 1, *rest: Any, c: Any = 2, d: Any = None, **more: Any) -> Any:
        return a


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((10,), {}, {"a": 10}),
        ((10,), {"d": 5}, {"a": 10, "b": 1, "c": 2, "d": 5}),
        ((), {"a": 10}, {"a": 10}),
        ((10, 11, 12, 13), {}, {"a": 10, "b": 11, "rest_0": 12, "rest_1": 13}),
        ((10, 11, 12), {"z": 1, "c": 4}, {"a": 10, "b": 11, "rest_0": 12, "c": 4, "z": 1}),
    ],
)
def test_arguments_are_bound_in_the_order_of_the_signature(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: dict[str, Any]
) -> None:
    bound = bind_arguments(Model(), ExampleInputs(args, kwargs))
    assert list(bound.arguments.items()) == list(expected.items())
    # Keywords in the order that is asked for, and not in that of the signature.
    located = bound.located([*reversed(kwargs)])
    assert [name for name, _, _ in located] == [*list(expected)[: len(args)], *reversed(kwargs)]
    assert all(expected[name] == value and path == () for name, path, value in located)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        bind_arguments(Model(), ExampleInputs((), {"b": 1}))


def test_a_mapping_that_lacks_a_key() -> None:
    class Sum(nn.Module):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            return batch["x"] + batch["more"]["y"]  # type: ignore[no-any-return]

    x = torch.randn(2, 3)
    gm = repl_fx.capture(Sum(), ({"x": x, "more": {"y": x}},))
    assert torch.equal(gm({"x": x, "more": {"y": x}, "z": 1}), x + x)
    with pytest.raises(BadInput, match="argument 'batch' has no key 'more'"):
        gm({"x": x})
    with pytest.raises(BadInput, match=r"argument 'batch' at \['more'\] has no key 'y', which .*; its keys are none"):
        gm({"x": x, "more": {}})
