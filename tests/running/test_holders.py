"""What holds values is given back what it held, and not touched where it holds that already."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from repl_fx.running.holders import GONE, attributes_of, bind, bytes_of, equal_arrays, refill, state_of


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a = 1

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, 2],
        lambda: {"a": 1},
        lambda: {1, 2},
        lambda: OrderedDict(a=1),
        lambda: defaultdict(int, a=1),
        lambda: Counter(a=1),
        lambda: deque([1, 2], maxlen=2),
        lambda: bytearray(b"ab"),
    ],
)
def test_containers_are_filled_again(make: Callable[[], Any]) -> None:
    owner, content = make(), make()
    owner.clear()
    refill(owner, content)
    assert owner == content


def test_arrays_are_written_where_they_differ() -> None:
    for content in (np.array(1.0), np.array([1.0, np.nan]), np.array([[1], "a"], dtype=object)):
        owner = content.copy()
        owner.flags.writeable = False
        refill(owner, content)
        owner.flags.writeable = True
        owner[...] = 2
        assert not equal_arrays(owner, content)
        refill(owner, content)
        assert equal_arrays(owner, content)


def test_objects_get_their_attributes_past_their_own_ways() -> None:
    owner = Slotted()
    before = attributes_of(owner)
    owner.a, owner.b = 2, 3
    refill(owner, before)
    assert owner.a == 1 and not hasattr(owner, "b")
    assert attributes_of(nn.Linear(2, 2)) == {"in_features": 2, "out_features": 2}
    file: dict[str, Any] = {"a": 1}
    bind(file, "b", 2)
    bind(file, "a", GONE)
    assert file == {"b": 2}


@pytest.mark.parametrize("generator", [random.Random(0), np.random.default_rng(0)])
def test_generators_draw_again(generator: Any) -> None:
    state = state_of(generator)[0]()
    drawn = generator.random()
    refill(generator, state)
    assert generator.random() == drawn


def test_the_bytes_of_a_conjugated_tensor_are_those_of_its_values() -> None:
    wave = torch.tensor([1 + 2j, 3 - 4j])
    assert bytes_of(wave.conj()) == bytes_of(wave.conj().resolve_conj()) != bytes_of(wave)
    assert bytes_of(torch._neg_view(wave)) == bytes_of(-wave)
