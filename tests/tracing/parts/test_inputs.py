"""Example inputs as plain data, and inputs made from that."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.artifact import load_artifact
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.parts.inputs import Inputs, _of_torch
from tests.nets import MlpNet, tokens


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class OfPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MlpNet()

    def forward(self, pair: Pair) -> torch.Tensor:
        return self.net(pair.first + pair[1])  # type: ignore[no-any-return]


def test_example_inputs_in_a_named_tuple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tokens(), tokens())
    model = OfPairs()
    result = repl_fx.transform(model, (pair,))
    repl_fx.save(result, tmp_path / "artifact")
    for known in (True, False):
        if not known:
            # The class is where nobody has imported it from.
            monkeypatch.setattr(sys.modules[__name__], "Pair", None)
        loaded = load_artifact(tmp_path / "artifact", OfPairs())
        assert type(loaded.inputs.args[0]).__name__ == "Pair" and loaded.inputs.args[0]._fields == pair._fields
        assert known == (type(loaded.inputs.args[0]) is type(pair))
        assert torch.equal(loaded.module(pair), result.module.eval()(pair))


class Boxed:
    """An input of a class that plain data does not describe."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class TakesBoxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MlpNet()
        self.limit = 0.0

    def forward(self, boxed: Boxed) -> Tensor:
        x = boxed.x
        if float(x.detach().abs().sum()) < self.limit:
            return x
        result: Tensor = self.net(x)
        return result


def test_inputs_that_plain_data_does_not_describe_are_given(tmp_path: Path) -> None:
    boxed = Boxed(tokens())
    result = repl_fx.transform(TakesBoxes(), (boxed,))
    repl_fx.save(result, tmp_path / "out")
    with pytest.raises(repl_fx.ArtifactError, match=r"input is a .*Boxed.*load\(directory, args=…, kwargs=…\)"):
        repl_fx.load(tmp_path / "out", TakesBoxes())
    loaded = repl_fx.load(tmp_path / "out", TakesBoxes(), args=(boxed,))
    assert torch.equal(loaded(boxed), result.module.eval()(boxed))
    # Captured in parts, it is saved again as any other.
    repl_fx.save(loaded, tmp_path / "again")
    again = repl_fx.load(tmp_path / "again", TakesBoxes(), args=(boxed,))
    assert isinstance(again, TakesBoxes) and torch.equal(again(boxed), loaded(boxed))
    vars(again)["limit"] = 0.5
    with pytest.raises(repl_fx.BadInput, match=r"was changed since: .*limit=0\.5, which was"):
        repl_fx.save(again, tmp_path / "third")


@pytest.mark.parametrize(
    "value",
    [
        (1, [True, None], "word"),
        OrderedDict(a=1.5, b=(2,)),
        {1: "one", None: "none"},
        (torch.bfloat16, torch.device("cpu")),
        (math.inf, -math.inf),
    ],
)
def test_values_come_back_from_plain_data(value: Any) -> None:
    text = msgspec.json.encode(Inputs.of(ExampleInputs((value,), {"named": value})))
    made = msgspec.json.decode(text, type=Inputs).make()
    assert made.args == (value,) and made.kwargs == {"named": value} and type(made.args[0]) is type(value)


def test_tensors_come_back_in_kind_and_the_same_each_time() -> None:
    described = Inputs.of(ExampleInputs((torch.tensor([[3, 9], [5, 4]]), torch.ones(2, 3, dtype=torch.float16))))
    first, second = described.make(), described.make()
    ids, fractions = first.args
    assert ids.dtype == torch.int64 and ids.shape == (2, 2) and int(ids.min()) >= 3 and int(ids.max()) <= 9
    assert fractions.dtype == torch.float16 and fractions.shape == (2, 3)
    assert all(map(torch.equal, first.args, second.args))


@pytest.mark.parametrize(
    ("kind", "name"), [("device", "warp"), ("device", "cuda:x"), ("dtype", "float7"), ("dtype", "nn")]
)
def test_devices_and_types_that_torch_has_not_are_a_line(kind: str, name: str) -> None:
    with pytest.raises(repl_fx.ArtifactError, match=rf"of the {kind} '{name}', which torch .* has not"):
        _of_torch(kind, name)


def test_a_tensor_that_is_given_twice_is_one_again() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2, 3)
    described = Inputs.of(ExampleInputs((y, [x, y]), {"labels": x}))
    made = msgspec.convert(msgspec.to_builtins(described), Inputs).make()
    first, (second, third) = made.args
    assert first is third and second is made.kwargs["labels"] and first is not second
    foreign = msgspec.structs.replace(described, args=())
    with pytest.raises(repl_fx.ArtifactError, match="tensor 1 of those before it, which are 0"):
        foreign.make()
