"""Calls are remembered without values, and runs leave the model as it was."""

from __future__ import annotations

import sys
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import outcome_of
from repl_fx.tracing.parts.calls import Call, calls_seen, methods_seen, obstacle_of, typical
from tests.tracing.parts.nets import Chosen


def call(*args: Any, **kwargs: Any) -> Call:
    return Call.of(ExampleInputs(args, kwargs), training=True)


def test_a_call_keeps_shapes_and_no_values() -> None:
    kept = call({"x": torch.full((2, 3), 7.0)}, torch.ones(4, dtype=torch.long), scale=2)
    assert kept.shapes() == ((2, 3), (4,))
    again = kept.inputs()
    assert torch.equal(again.args[0]["x"], torch.zeros(2, 3)) and again.args[1].dtype == torch.long
    assert again.kwargs == {"scale": 2}


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        (call(torch.zeros(5, 1), scale=2), True),
        (call(torch.zeros(2, 3, 1), scale=2), False),
        (call(torch.zeros(2, 3).double(), scale=2), False),
        (call(torch.zeros(2, 3), scale=3), False),
        (call(torch.zeros(2, 3), scale=2.0), False),
        (call(torch.zeros(2, 3)), False),
    ],
    ids=["sizes", "dimensions", "dtype", "value", "type", "structure"],
)
def test_one_graph_takes_calls_that_differ_in_sizes_alone(other: Call, fits: bool) -> None:
    first = call(torch.zeros(2, 3), scale=2)
    assert (first.kind == other.kind) is fits
    assert obstacle_of([first, other]) == (None if fits else "its calls differ in more than the sizes of tensors")


def test_an_object_is_named_as_the_obstacle() -> None:
    assert obstacle_of([call(torch.zeros(2)), call(object())]) == "it is called with an object"


def test_the_typical_call_has_the_fewest_sizes_that_a_trace_takes_for_constants() -> None:
    calls = [call(torch.zeros(1, 1)), call(torch.zeros(3, 2)), call(torch.zeros(0, 2))]
    assert typical(calls) is calls[1]


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x.mul_(2)))  # type: ignore[no-any-return]


def test_a_run_is_seen_and_repeated_and_changes_nothing() -> None:
    model, x = Drops(), torch.randn(8, 4)
    seen: list[tuple[str, tuple[int, ...]]] = []
    before, generator = x.clone(), torch.get_rng_state()
    with calls_seen({"inner": model.inner}, lambda path, inputs: seen.append((path, tuple(inputs.args[0].shape)))):
        outcome = outcome_of(model, ExampleInputs((x,)), training=True, steps=2)
    assert seen == [("inner", (8, 4))] * 2 and not model.inner._forward_pre_hooks
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), generator)
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert outcome.equals(outcome_of(model, ExampleInputs((x,)), training=True, steps=2))
    assert not outcome.equals(outcome_of(model, ExampleInputs((x,)), training=False, steps=2))


def test_a_run_that_fails_equals_no_other() -> None:
    outcome = outcome_of(nn.Linear(3, 3), ExampleInputs((torch.zeros(2, 4),)), training=False)
    assert isinstance(outcome.problem, RuntimeError) and "shapes cannot be multiplied" in str(outcome.problem)
    assert not outcome.equals(outcome)


class Asked(nn.Module):
    """Has a method and a property; its forward calls the method too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chosen(nn.Linear(2, 2))

    def scaled(self, x: Tensor) -> Tensor:
        return 2 * x

    @property
    def width(self) -> int:
        return 2

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.scaled(x))  # type: ignore[no-any-return]


def test_methods_that_code_around_a_module_calls() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(Asked()), nn.Sequential(Asked())

        def forward(self, x: Tensor) -> Tensor:
            asked: Any = self.second.get_submodule("0")
            return asked.scaled(self.second(self.first(x))) * asked.width  # type: ignore[no-any-return]

    model = Outer()
    before = sys.getprofile()
    found: dict[str, list[str]] = {}
    with methods_seen(model, found):
        model(torch.randn(3, 2))
    assert found == {"second": ["0.scaled", "0.width"], "second.0": ["scaled", "width"]}
    assert sys.getprofile() is before


def test_methods_that_a_module_calls_as_its_mode_is_set_are_its_own() -> None:
    class Moody(Asked):
        def train(self, mode: bool = True) -> Self:
            assert self.width
            return super().train(mode)

    class Outer(Moody):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(Moody()), Moody()

        def train(self, mode: bool = True) -> Self:
            # A graph in the place of the second would have none.
            assert self.second.width
            return super().train(mode)

    found: dict[str, list[str]] = {}
    with methods_seen(model := Outer(), found):
        model.eval().train()
    assert found == {"second": ["width"]}
