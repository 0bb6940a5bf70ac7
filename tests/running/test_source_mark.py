"""The mark of a source: equal for models that a trace cannot tell apart, another one for all others."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repl_fx.running import source_mark as marks
from repl_fx.running.source_mark import source_mark
from tests.nets import MlpNet

SCALE = [1.0, 2.0]
TABLE = torch.arange(3.0)


def halved(x: Tensor) -> Tensor:
    return x / 2


def scaled(x: Tensor) -> Tensor:
    return halved(x) * SCALE[0] + TABLE[0]


class Net(nn.Module):
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.register_buffer("shift", torch.zeros(3))
        self.act: Any = torch.relu
        self.settings: Any = {"deep": [SimpleNamespace(rate=0.5)]}

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        rate: float = self.settings["deep"][0].rate
        return scaled(x + self.shift) * rate


def test_weights_and_modes_leave_no_trace() -> None:
    torch.manual_seed(0)
    one, other = Net(), Net().eval()
    assert source_mark(one).digest and source_mark(one).fits(source_mark(other).digest)
    assert source_mark(one).files == {__file__}


@pytest.mark.slow
def test_a_mark_is_the_same_in_every_process() -> None:
    code = (
        "from tests.running.test_source_mark import Net; from repl_fx.running.source_mark import source_mark; "
        "print(source_mark(Net()).digest)"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        found.add(done.stdout.strip())
    assert len(found) == 1 and len(found.pop()) == 64


def test_a_hash_that_an_object_keeps_of_itself_is_no_part_of_it() -> None:
    found = []
    for value in (1 << 61, -(1 << 62), 3):
        net = Net()
        _with("own_hash", value)(net)
        found.append(source_mark(net).digest)
    # Such as a count of hashes, which is none.
    assert found[0] == found[1] != found[2]


def _with(name: str, value: Any) -> Callable[[Net], None]:
    return lambda net: setattr(net, name, value)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "function": _with("act", torch.tanh),
    "own function": _with("act", halved),
    "argument of a function": _with("act", functools.partial(torch.clamp, min=1.0)),
    "attribute of an object": _with("settings", {"deep": [SimpleNamespace(rate=0.25)]}),
    "setting of a layer": lambda net: setattr(net.layers[0], "label", "first"),
    "class of a layer": lambda net: net.layers.__setitem__(0, nn.Bilinear(3, 3, 3)),
    "width": lambda net: net.layers.__setitem__(0, nn.Linear(3, 4)),
    "order": lambda net: net.layers.append(nn.Identity()),
    "tied": lambda net: net.layers.__setitem__(1, net.layers[0]),
    "dtype": lambda net: net.double(),
    "device": lambda net: net.to("meta"),
    "frozen": lambda net: net.requires_grad_(requires_grad=False),
    "buffer": lambda net: setattr(net, "shift", None),
    "tensor in an attribute": _with("table", torch.ones(2)),
    "hook": lambda net: net.register_forward_hook(lambda *_: None),
    "forward of its own": _with("forward", halved),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_trace_may_meet_is_part_of_it(change: str) -> None:
    net = Net()
    CHANGES[change](net)
    assert source_mark(net).digest and not source_mark(net).fits(source_mark(Net()).digest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCALE", [3.0, 2.0]),
        ("TABLE", torch.arange(3.0) + 1),
        ("halved", lambda x: x / 3),
        ("scaled", lambda x: x),
    ],
)
def test_so_is_what_its_code_names(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    before = source_mark(Net()).digest
    monkeypatch.setattr(sys.modules[__name__], name, value)
    assert source_mark(Net()).digest and not source_mark(Net()).fits(before)


def test_so_are_versions_and_the_default_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_mark(MlpNet()).digest
    torch.set_default_dtype(torch.float64)
    try:
        assert not source_mark(MlpNet().float()).fits(before)
    finally:
        torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(marks, "_version", lambda package: "0")
    assert not source_mark(MlpNet()).fits(before)


@pytest.mark.parametrize(
    "value",
    [itertools.count(), threading.Lock(), [[[[[[[[1]]]]]]]], [nn.Linear(2, 2)]],
)
def test_a_model_that_holds_what_cannot_be_told_has_none(value: Any) -> None:
    net = Net()
    net.settings = value
    assert not source_mark(net).digest and not source_mark(net).fits(source_mark(net).digest)
