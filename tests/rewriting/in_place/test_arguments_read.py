"""Arguments that what stays of a block reads, and those that are handed to what is gone."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from repl_fx.rewriting.in_place.arguments_read import Left, arguments_read


class _Attention(nn.Module):
    def forward(self, x: Any, mask: Any = None, bias: Any = None) -> Any:
        return x if mask is None else x * mask


class _Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Attention()

    def forward(self, x: Any, cover: Any = None) -> Any:
        return x + self.inner(x, mask=cover)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.wrapper, self.layers = _Attention(), _Wrapper(), nn.ModuleList([_Attention()])

    def handed_on(self, x: Any, mask: Any, more: Any) -> Any:
        return self.attention(x, mask, more)

    def forward(
        self, x: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, scale: Any, flag: Any, *rest: Any, **named: Any
    ) -> Any:
        other = b if x is not None else c
        y = self.attention(x, a, bias=other) + self.wrapper(x, d) + self.layers[0](x, e)
        y = y + self.handed_on(x, f, None) + self.absent(x, a)  # type: ignore[operator]
        y = self.attention(y, *rest, **named)
        if flag:
            return y
        return x + y * scale


def test_arguments_that_gone_modules_alone_are_handed_are_not_read() -> None:
    block = _Block()
    left = Left({block, block.wrapper}, set(), set())
    assert arguments_read(block, left) == [("x",), ("scale",), ("flag",)]


_NAMED = {"attention": {("named", "mask")}}


@pytest.mark.parametrize(
    ("stays", "read"),
    [("attention", {"a", "f", "rest"}), ("wrapper.inner", {"d"}), ("layers.0", {"e"})],
)
def test_arguments_of_modules_that_stay_are_read(stays: str, read: set[str]) -> None:
    block = _Block()
    left = Left({block, block.wrapper, block.get_submodule(stays)}, set(), set())
    found = arguments_read(block, left)
    assert {place[0] for place in found if place[0] != "named"} == {"x", "scale", "flag", *read}
    # Of what is handed on by name, what the attention reads.
    assert {place for place in found if place[0] == "named"} == _NAMED.get(stays, set())


def test_of_code_that_cannot_be_seen_all_arguments_are_read() -> None:
    made: dict[str, Any] = {"nn": nn}
    exec("class Block(nn.Module):\n    def forward(self, x, mask=None):\n        return x", made)
    block = made["Block"]()
    assert arguments_read(block, Left({block}, set(), set())) == [("x",), ("mask",)]


class _Lines(nn.Module):
    def forward(self, x: Any, mask: Any = None, way: Any = None) -> Any:
        y = x * mask
        if self.training:
            y = y * way
        else:
            y = y + 1
            y = y + 2
        return x + y


def test_statements_of_which_nothing_stays_and_those_not_run_read_nothing() -> None:
    code = _Lines.forward.__code__
    begin = code.co_firstlineno
    before, now = ({(code.co_filename, begin + line) for line in lines} for lines in ((1, 5, 7), (5, 7)))
    assert arguments_read(_Lines(), Left(set(), before, now)) == [("x",)]
    assert arguments_read(_Lines(), Left(set(), before, before)) == [("x",), ("mask",)]
    both = {*before, (code.co_filename, begin + 3)}
    assert arguments_read(_Lines(), Left(set(), both, both)) == [("x",), ("mask",), ("way",)]


def _mixed(module: nn.Module, x: Any, mask: Any, scale: float = 1.0, causal: Any = None, **kwargs: Any) -> Any:
    if kwargs.get("soft") is not None or "hard" in kwargs:
        raise ValueError(kwargs["soft"])
    return x if causal is None else x * scale


def _counted(module: nn.Module, x: Any, mask: Any, **kwargs: Any) -> Any:
    return x * len(kwargs)


MIXING = {"mixed": _mixed, "counted": _counted}


class _Mixing(nn.Module):
    def __init__(self, kind: str = "mixed") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Any, mask: Any = None, bias: Any = None, **kwargs: Any) -> Any:
        mix = MIXING.get(self.kind, _counted)
        return mix(self, x, mask, scale=2.0, **kwargs)


class _HandsOn(nn.Module):
    def __init__(self, kind: str = "mixed") -> None:
        super().__init__()
        self.mixing = _Mixing(kind)

    def forward(self, x: Any, places: Any = None, causal: Any = None, **kwargs: Any) -> Any:
        return self.mixing(x, places=places, causal=causal, **kwargs)


def _all_of(block: nn.Module) -> Left:
    return Left(set(block.modules()), set(), set())


def test_names_in_keywords_are_followed_to_the_functions_that_take_them() -> None:
    block = _HandsOn()
    # `places` goes as far, and nobody takes it; `bias` and `mask` are taken, and not read.
    names = [("kwargs", name) for name in ("hard", "soft")]
    assert arguments_read(block, _all_of(block)) == [("x",), ("causal",), *names]


def test_keywords_that_a_function_takes_as_a_whole_are_all_read() -> None:
    block = _HandsOn("counted")
    assert arguments_read(block, _all_of(block)) == [("x",), ("places",), ("causal",), ("kwargs",)]


class _Parted(nn.Module):
    def forward(self, x: Any, scale: Any = 1.0, shift: Any = 0.0, way: str = "", mask: Any = None) -> Any:
        h, factor = x * mask, scale
        h = x * (added := shift)
        match way:
            case "":
                h = x + mask
            case _:
                return x
        return (x + h) * factor + added


def test_values_that_a_statement_hands_on_beside_what_is_gone_are_read() -> None:
    code = _Parted.forward.__code__
    gone = {(code.co_filename, code.co_firstlineno + line) for line in (1, 2, 5)}
    assert arguments_read(_Parted(), Left(set(), gone, set())) == [("x",), ("scale",), ("shift",), ("way",), ("mask",)]
