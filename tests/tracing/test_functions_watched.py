"""One mode shows each function of torch's to all that watch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repl_fx.tracing.functions_watched import FunctionsWatched, Run


class Notes:
    """Notes what it sees, in a list that all share."""

    def __init__(self, name: str, seen: list[tuple[str, Any]], *, answers: bool = False) -> None:
        self.name, self.seen, self.answers = name, seen, answers

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        self.seen.append((self.name, func))
        return torch.tensor(5.0) if self.answers else run(func, args, kwargs)


def test_each_watcher_sees_a_function_in_order_and_attributes_pass() -> None:
    seen: list[tuple[str, Any]] = []
    x = torch.ones(3)
    with FunctionsWatched([Notes("first", seen), Notes("second", seen)]):
        assert x.shape == (3,)
        total = x.sum()
    assert seen == [("first", Tensor.sum), ("second", Tensor.sum)]
    assert total == 3


def test_a_watcher_may_answer_itself() -> None:
    seen: list[tuple[str, Any]] = []
    x = torch.ones(3)
    with FunctionsWatched([Notes("first", seen, answers=True), Notes("second", seen)]):
        total = x.sum()
    assert total == 5 and seen == [("first", Tensor.sum)]
