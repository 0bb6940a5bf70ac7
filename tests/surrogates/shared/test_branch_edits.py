"""Branches that join the spine by an addition with settings, and those that share a span."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from tests.nets import Attention, as_after_training

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
            gm = repl_fx.transform(model, (x,), surrogate=surrogate).graph_module
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
        gm = repl_fx.transform(
            nn.Sequential(*(WrittenSum(way) for _ in range(3))), (x,), surrogate=surrogate
        ).graph_module
        torch.manual_seed(1)
        as_after_training(gm)
        results.append(gm(x))
    torch.testing.assert_close(*results)


def test_these_are_not_all_refused() -> None:
    x = torch.randn(2, 16, 6, 6)
    for join in _JOINS["add with alpha"]:
        model = nn.Sequential(*(Joined(join) for _ in range(3)))
        for surrogate in ("bottleneck", "blend"):
            assert repl_fx.transform(model, (x,), surrogate=surrogate).plan.replacements


class Joint(nn.Module):
    """An attention and an MLP over the tokens of two streams, or of the two as one; `scale` multiplies one's share."""

    def __init__(self, together: bool, scaled: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = Attention(16, 2, 0.0)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = None if scaled is None else nn.Parameter(torch.full((16,), 0.5))
        self.together, self.scaled = together, scaled

    def forward(self, text: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        text, picture = self.added(text, picture, lambda x: self.attn(self.norm1(x)))
        return self.added(text, picture, lambda x: self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def added(self, text: Tensor, picture: Tensor, branch: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if self.together:
            return text, picture + branch(picture)
        made = torch.split(branch(torch.cat([text, picture], 1)), [text.shape[1], picture.shape[1]], 1)
        parts = [
            part if number != self.scaled else part * self.get_parameter("scale") for number, part in enumerate(made)
        ]
        return text + parts[0], picture + parts[1]


class JointNet(nn.Module):
    """Takes text (batch, 3, 16) and a picture (batch, 5, 16)."""

    def __init__(self, together: bool = False, scaled: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Joint(together, scaled) for _ in range(3))
        self.together = together

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        if self.together:
            picture = torch.cat([text, picture], 1)
        for block in self.blocks:
            text, picture = block(text, picture)
        return picture if self.together else torch.cat([text, picture], 1)


@pytest.mark.slow
@pytest.mark.parametrize("surrogate", ["reuse", "bottleneck"])
def test_one_span_for_two_streams_is_one_layer(surrogate: str) -> None:
    """As the layer that one stream of all tokens gets, in the graph and in place, with gradients."""
    x, made = (torch.randn(2, 3, 16), torch.randn(2, 5, 16)), []
    for together in (True, False):
        torch.manual_seed(0)
        result = repl_fx.transform(JointNet(together), x, surrogate=surrogate)
        assert result.in_place.model is not None
        torch.manual_seed(1)
        as_after_training(result.graph_module)
        for module in (result.graph_module, result.in_place.model):
            module.zero_grad()
            output = module(*x)
            output.square().sum().backward()
            made.append((output, *(p.grad for p in module.parameters())))
    one_graph, one_placed, graph, placed = made
    torch.testing.assert_close(graph, one_graph)
    torch.testing.assert_close(placed, one_placed)
    assert torch.equal(placed[0], graph[0])


@pytest.mark.parametrize("surrogate", ["reuse", "bottleneck"])
@pytest.mark.parametrize("scaled", [0, 1])
def test_a_layer_scale_of_either_stream_sets_how_their_span_begins(surrogate: str, scaled: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    gm = repl_fx.transform(JointNet(scaled=scaled), x, surrogate=surrogate).graph_module
    pruned = repl_fx.transform(JointNet(scaled=scaled), x, surrogate="identity").graph_module
    pruned.load_state_dict(gm.state_dict(), strict=False)
    assert not torch.allclose(gm(*x), pruned(*x))
