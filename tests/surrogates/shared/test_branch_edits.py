"""Branches that join the spine by an addition with settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from tests.captures import transformed
from tests.nets import as_after_training

Join = Callable[[Tensor, Tensor], Tensor]
# A way to join a branch, and the same in plain operators.
_JOINS: dict[str, tuple[Join, Join]] = {
    "add with alpha": (lambda x, y: torch.add(x, y, alpha=0.25), lambda x, y: x + 0.25 * y),
    "in place": (lambda x, y: x.clone().add_(y, alpha=0.25), lambda x, y: x + 0.25 * y),
    "stream with alpha": (lambda x, y: torch.add(y, x, alpha=0.25), lambda x, y: 0.25 * x + y),
    "sub with alpha": (lambda x, y: torch.sub(x, y, alpha=2), lambda x, y: x - 2 * y),
    "rsub": (lambda x, y: torch.rsub(y, x), lambda x, y: x - y),
    "add in the branch": (lambda x, y: x + torch.add(y, F.relu(y), alpha=3), lambda x, y: x + (y + 3 * F.relu(y))),
}


class Joined(nn.Module):
    """join(x, conv2(relu(conv1(x))))."""

    def __init__(self, join: Join) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.conv2(F.relu(self.conv1(x))))


@pytest.mark.parametrize("surrogate", ["coarse", "slim", "bottleneck", "blend"])
@pytest.mark.parametrize("kind", _JOINS)
def test_settings_of_an_addition_count_or_are_refused(kind: str, surrogate: str) -> None:
    x, results = torch.randn(2, 16, 6, 6), []
    for join in _JOINS[kind]:
        torch.manual_seed(0)
        model = nn.Sequential(*(Joined(join) for _ in range(3)))
        try:
            gm = transformed(model, (x,), surrogate=surrogate).graph_module
        except repl_fx.NothingToReplace:
            continue
        # What starts at zero would hide how it is added.
        torch.manual_seed(1)
        as_after_training(gm)
        results.append(gm(x))
    if len(results) == 2:
        torch.testing.assert_close(*results)


class WrittenSum(nn.Module):
    """Two branches; the sum with the first is written over one of its operands, and read from there."""

    def __init__(self, over: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.over = over

    def forward(self, x: Tensor) -> Tensor:
        stream, branch = x.clone(), self.conv1(F.relu(x))
        if self.over == "stream":
            stream.add_(branch)
        elif self.over == "branch":
            branch.add_(stream)
            stream = branch
        else:
            stream = stream + branch
        return stream + self.conv2(F.relu(stream))  # type: ignore[no-any-return]


@pytest.mark.parametrize("surrogate", ["bottleneck", "slim", "blend", "identity"])
@pytest.mark.parametrize("over", ["stream", "branch"])
def test_a_sum_written_over_an_operand_is_any_other(over: str, surrogate: str) -> None:
    x, results = torch.randn(2, 16, 6, 6), []
    for way in (over, ""):
        torch.manual_seed(0)
        gm = transformed(nn.Sequential(*(WrittenSum(way) for _ in range(3))), (x,), surrogate=surrogate).graph_module
        torch.manual_seed(1)
        as_after_training(gm)
        results.append(gm(x))
    torch.testing.assert_close(*results)


def test_these_are_not_all_refused() -> None:
    x = torch.randn(2, 16, 6, 6)
    for join in _JOINS["add with alpha"]:
        model = nn.Sequential(*(Joined(join) for _ in range(3)))
        for surrogate in ("bottleneck", "blend"):
            assert transformed(model, (x,), surrogate=surrogate).plan.replacements
