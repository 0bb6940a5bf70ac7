"""Names and order of a graph's arguments."""

from __future__ import annotations

import enum
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput, CaptureError
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


def test_mappings_and_sequences_have_the_keys_and_lengths_of_the_capture() -> None:
    class Sum(nn.Module):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            return sum(batch["x"]) + batch["more"]["y"]  # type: ignore[no-any-return]

    x = torch.randn(2, 3)
    gm = repl_fx.capture(Sum(), ({"x": (x, x), "more": {"y": x}},))
    assert torch.equal(gm({"x": [x, x], "more": {"y": x}}), x + x + x)
    for batch, message in (
        ({"x": (x, x)}, "argument 'batch' has no key 'more'"),
        ({"x": (x, x), "more": {}}, r"argument 'batch' at \['more'\] has no key 'y', which .*; its keys are none"),
        ({"x": (x, x), "more": {"y": x}, "z": 1}, "argument 'batch' has the key 'z', which .* captured without"),
        ({"x": (x, x, x), "more": {"y": x}}, r"argument 'batch' at \['x'\] has length 3, but was captured with 2"),
        ({"x": x.sum(), "more": {"y": x}}, "was captured as a sequence, not a tensor of shape"),
        (None, "argument 'batch' was captured as a mapping, not None"),
    ):
        with pytest.raises(BadInput, match=message):
            gm(batch)


class Optional(nn.Module):
    def forward(self, x: Tensor, scale: float | None = 1.0, mask: Tensor | None = None, **more: Any) -> Tensor:
        x = x * (3.0 if scale is None else scale) * more.get("times", 5.0)
        return x if mask is None else x + mask


_X = torch.linspace(-1, 1, 6).view(2, 3)


@pytest.mark.parametrize(
    ("kwargs", "refused"),
    [
        ({"scale": 2.0}, {"": "was captured as 2.0, not 1.0", "int": "not 2;", "tensor": "not a tensor of shape"}),
        ({"scale": 1.0}, {"int": "was captured as 1.0, not 2", "none": "not None"}),
        ({"mask": _X}, {"": "argument 'mask' was captured as a tensor, not None", "none": "'scale' .* not None"}),
        ({"scale": None, "mask": _X}, {"": "'scale' was captured as None, not 1.0", "tensor": "not a tensor of shape"}),
        ({"scale": 2.0, "times": 2.0}, {"scaled": "'times' was captured as 2.0, not left out"}),
    ],
)
def test_arguments_that_a_call_leaves_out_take_the_default_of_the_source(
    kwargs: dict[str, Any], refused: dict[str, str]
) -> None:
    model = Optional()
    gm = repl_fx.capture(model, (_X,), kwargs)
    calls: dict[str, dict[str, Any]] = {
        "": {},
        "scaled": {"scale": 2.0},
        "int": {"scale": 2},
        "none": {"scale": None},
        "tensor": {"scale": torch.tensor(2.0)},
        "captured": kwargs,
    }
    answers = 0
    for name, given in calls.items():
        try:
            found = gm(_X, **given)
        except BadInput as problem:
            assert name not in refused or re.search(refused[name], str(problem)), problem
            assert name != "captured"
            continue
        assert name not in refused
        assert torch.equal(found, model(_X, **given))
        answers += 1
    assert answers >= 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'unknown'"):
        gm(_X, unknown=1)


class Ranked(nn.Module):
    def forward(self, x: Tensor, shift: Any = None, scale: float = 2.0, *, dtype: Any = _X, **more: Any) -> Tensor:
        x = (x if shift is None else x + shift) * scale
        return x * more["times"] if "times" in more else x


@pytest.mark.parametrize("copied", [lambda gm: gm, lambda gm: pickle.loads(pickle.dumps(gm)), repl_fx.fold])
@pytest.mark.parametrize("extra", [{}, {"times": torch.tensor(3.0)}])
def test_arguments_that_the_example_left_out_may_be_passed_as_their_defaults(
    copied: Any, extra: dict[str, Tensor]
) -> None:
    model = Ranked().eval()
    gm = copied(repl_fx.capture(model, (_X,), extra))
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    for args, kwargs in (((None,), {}), ((None, 2.0), {}), ((), {"scale": 2.0}), ((None,), {"scale": 2.0})):
        assert torch.equal(gm(_X, *args, **kwargs, **extra), model(_X, *args, **kwargs, **extra))
    for args, kwargs, message in (
        ((_X,), {}, "argument 'shift' was captured as None, not a tensor of shape"),
        ((None, 3.0), {}, "argument 'scale' was captured as 2.0, not 3.0"),
        ((), {"shift": 1}, "argument 'shift' was captured as None, not 1"),
        ((), {"dtype": torch.float64}, "argument 'dtype' was captured as left out, not torch.float64"),
    ):
        with pytest.raises(BadInput, match=message):
            gm(_X, *args, **kwargs, **extra)
    # What the source does not take either.
    for args, kwargs in (((None, 2.0, 1), {}), ((None,), {"shift": None})):
        with pytest.raises(TypeError):
            model(_X, *args, **kwargs, **extra)
        with pytest.raises(TypeError, match=r"forward\(\) (takes|got)"):
            gm(_X, *args, **kwargs, **extra)


@pytest.mark.parametrize("times", [2.0, torch.tensor(2.0)])
def test_a_keyword_of_no_parameter_that_is_left_out_is_refused(times: Any) -> None:
    gm = repl_fx.capture(Optional(), (_X,), {"times": times})
    assert torch.equal(gm(_X, times=times), _X * 2)
    with pytest.raises(BadInput, match=r"argument 'times' was captured as (2.0|a tensor), not left out"):
        gm(_X)


class Shadows(nn.Module):
    def forward(self, x: Tensor, torch: Tensor) -> Tensor:
        return x + torch


class Limits(nn.Module):
    def forward(self, x: Tensor, inf: Tensor) -> Tensor:
        return x.masked_fill(inf > 0, float("inf"))


@pytest.mark.parametrize("model", [Shadows(), Limits()])
def test_an_argument_that_would_hide_what_the_code_of_a_graph_calls_is_refused(model: nn.Module) -> None:
    with pytest.raises(CaptureError, match=r"argument '(torch|inf)' has a name that the code of a graph needs"):
        repl_fx.capture(model, (_X, _X))


def test_arguments_of_classes_that_a_graph_cannot_write_are_refused() -> None:
    class Level(enum.IntEnum):
        HIGH = 2

    for value, kind in ((np.float64(2.0), "float64"), (Level.HIGH, "Level")):
        with pytest.raises(CaptureError, match=f"argument 'scale' is a {kind}"):
            repl_fx.capture(Optional(), (_X,), {"scale": value})
