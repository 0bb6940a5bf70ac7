"""The state dict that is found in a checkpoint, and the names in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from repl_fx.errors import BadInput
from repl_fx.sources.checkpoints.names import state_for

State = Mapping[str, Any]


def _net() -> nn.Module:
    return nn.Sequential(OrderedDict(stem=nn.Linear(2, 3), norm=nn.BatchNorm1d(3)))


def _under(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], State]] = {
    "as it is": dict,
    "lightning": lambda s: {"epoch": 3, "state_dict": _under("net.")(s), "optimizer_states": [{"state": {0: {}}}]},
    "timm": lambda s: {"arch": "x", "state_dict": s, "optimizer": {"state": {}, "param_groups": []}},
    "with a tensor beside": lambda s: {"model": s, "rng": torch.zeros(8)},
    "of another model too": lambda s: {
        "generator": s,
        "discriminator": {f"{n}.weight": torch.ones(1) for n in range(20)},
    },
    "of DDP": _under("module."),
    "compiled": _under("_orig_mod."),
    "compiled inside": lambda s: {name.replace("stem.", "stem._orig_mod."): value for name, value in s.items()},
    "compiled and of DDP": _under("module._orig_mod."),
    "two deep": _under("model.net."),
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **_under("module.")(s)},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers_are_understood(wrapped: str) -> None:
    state = _net().state_dict()
    found = state_for(state.keys(), WRAPPED[wrapped](state), "it")
    assert list(found) == list(state)
    assert all(found[name] is tensor for name, tensor in state.items())


def test_wrappers_of_torch_itself() -> None:
    net = _net()
    wrappers: tuple[Any, ...] = (nn.DataParallel(net), AveragedModel(net), torch.compile(net, backend="eager"))
    for wrapper in wrappers:
        state: State = wrapper.state_dict()
        assert list(state_for(net.state_dict().keys(), state, "it")) == list(net.state_dict())


def test_versions_of_modules_go_with_their_names() -> None:
    net = _net()
    for state in (net.state_dict(), nn.DataParallel(net).state_dict()):
        versions: Any = state_for(net.state_dict().keys(), state, "it")
        assert versions._metadata["norm"] == {"version": 2} and "" in versions._metadata


def test_nothing_is_taken_off_without_need() -> None:
    names = ["module.a.weight", "module.b.weight"]
    state = dict.fromkeys(names, torch.ones(1))
    assert list(state_for(names, state, "it")) == names
    assert list(state_for(names, _under("net.")(state), "it")) == names
    # A prefix that does not help stays, for the message.
    assert list(state_for(["other"], state, "it")) == names


def test_the_checkpoint_itself_is_not_changed() -> None:
    state = OrderedDict(_under("module.")(_net().state_dict()), n_averaged=torch.tensor(1))
    names = list(state)
    state_for(_net().state_dict().keys(), state, "it")
    assert list(state) == names


def test_names_that_would_become_one_stay() -> None:
    state = {"a._orig_mod.w": torch.ones(1), "a.w": torch.zeros(1)}
    assert list(state_for(["a.w"], state, "it")) == list(state)


def test_several_states_for_the_model_are_refused() -> None:
    state = _net().state_dict()
    with pytest.raises(BadInput, match=r"last\.pt holds several states for such a model \('state_dict', 'ema'\); save"):
        state_for(state.keys(), {"state_dict": state, "ema": _under("module.")(state)}, "last.pt")


@pytest.mark.parametrize(
    ("checkpoint", "line"),
    [
        ({}, "holds no state dict: it is empty; save one"),
        ({"epoch": 3, "lr": 0.1}, r"holds no state dict: its keys are 'epoch', 'lr'; save one"),
        ({3: torch.ones(1)}, "holds no state dict: its keys are 3"),
    ],
)
def test_checkpoints_without_a_state(checkpoint: dict[Any, Tensor], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        state_for(["a"], checkpoint, "last.pt")
