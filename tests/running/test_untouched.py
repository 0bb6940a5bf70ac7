"""A model is after a run as it was before, whatever it keeps its settings in; and the device it runs on."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import device_of, outcome_of, seeded, untouched

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Frozen(OrderedDict[str, Any]):
    """A configuration that refuses to be changed, and shows its items as attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        vars(self).update(items)

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("frozen")


class Default(dict[str, Any]):
    """A dict that is not made from another dict alone."""

    def __init__(self, kind: str, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.kind = kind


class Net(nn.Module):
    """A layer with settings, public and private."""

    def __init__(self, settings: Any, name: str) -> None:
        super().__init__()
        self.fc, self.name = nn.Linear(4, 4), name
        setattr(self, name, settings)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.fc(x) * getattr(self, self.name)["scale"]
        return scaled


@pytest.mark.parametrize("name", ["settings", "_settings"])
@pytest.mark.parametrize(
    "settings",
    [
        Frozen(scale=2.0),
        Default("b", {"scale": 2.0}),
        defaultdict(float, scale=2.0),
        Counter(scale=2),
        OrderedDict(scale=2.0),
    ],
)
def test_settings_of_any_class_survive(settings: Any, name: str) -> None:
    model, before, kept = Net(settings, name), dict(settings), dict(getattr(settings, "__dict__", {}))
    with untouched(model, buffers=True, parameters=True):
        model(X)
    gm = repl_fx.capture(model, (X,))
    assert repl_fx.check_capture(model, gm, (X,))
    assert getattr(model, name) is settings
    assert dict(settings) == before and dict(getattr(settings, "__dict__", {})) == kept
    with untouched(model):
        settings_now = getattr(model, name)
        if type(settings_now) is not Frozen:
            settings_now["scale"] = 3.0
    assert type(settings) is Default or dict(settings) == before


def test_the_device_of_a_model() -> None:
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU(), ExampleInputs((torch.zeros(2, device="meta"),))) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_a_run_that_fails_inside_a_region_leaves_none_open() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                y = self.first(x)
                return self.second(y.flatten(1)).float()  # type: ignore[no-any-return]

    gm = repl_fx.capture(Region(), (torch.randn(2, 4),))
    for node in list(gm.graph.nodes):
        if str(node.target).startswith("<function check_") or getattr(node.target, "__name__", "").startswith("check_"):
            gm.graph.erase_node(node)
    gm.recompile()
    before = gm.eval()(torch.ones(2, 4))
    assert outcome_of(gm, ExampleInputs((torch.randn(2, 3, 4),)), training=False).problem is not None
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    # So does any run that is made here, such as a step of training that is tried.
    with pytest.raises(RuntimeError):
        ExampleInputs((torch.randn(2, 3, 4),)).passed_to(gm)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    with torch.no_grad():
        gm.get_parameter("first.weight").zero_()
        # Casts of the weights as they were are not kept.
        assert not torch.equal(gm(torch.ones(2, 4)), before)


def test_a_seed_holds_within_and_not_behind() -> None:
    drawn = []
    torch_state, state, array_state = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    for seed in (5, 5, 6):
        with seeded(torch.device("cpu"), seed):
            drawn.append((float(torch.rand(1)), random.random(), float(np.random.rand())))
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (random.getstate(), str(np.random.get_state())) == (state, array_state)


class Observed(nn.Module):
    """Keeps the largest value of each channel, of which it knows nothing before it has run (observers of torch.ao)."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.largest.resize_(x.shape[1]).copy_(x.amax(0))
        return x


def test_a_buffer_that_a_run_makes_larger_is_as_small_as_before() -> None:
    model = Observed()
    with untouched(model, buffers=True):
        assert model(X).shape == X.shape
        assert model.largest.shape == (4,)
    assert model.largest.shape == (0,)
