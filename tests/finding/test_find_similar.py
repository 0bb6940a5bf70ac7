"""Similar repeats: residual units alike up to sizes, strides and the projection of a shortcut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repl_fx
from repl_fx.finding.blocks import Repeat
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.tracing.capture import capture
from tests.stages import Stages, Unit, images

SURROGATES = ["identity", "bottleneck"]


class Inverted(nn.Module):
    """An inverted residual; the addition is there where the sizes allow it."""

    def __init__(self, given: int, width: int, stride: int = 1) -> None:
        super().__init__()
        inner = 3 * given
        self.expand = nn.Conv2d(given, inner, 1)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner)
        self.project = nn.Conv2d(inner, width, 1)
        self.skip = stride == 1 and given == width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.skip else y


class Nested(nn.Module):
    """A unit inside another, which has parameters of its own besides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.unit, self.out = nn.Conv2d(width, width, 1), Unit(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.unit(self.into(x)))  # type: ignore[no-any-return]


def similar_in(model: nn.Module) -> Repeat:
    (repeat,) = [r for r in find_repeats(capture(model, (images(),))) if r.similar]
    return repeat


def test_stages_of_other_widths_are_one_similar_repeat() -> None:
    repeat = similar_in(Stages(2, 2, 2))
    assert [block.name.partition("#")[0] for block in repeat.blocks] == [f"units.{i}" for i in range(6)]
    first, second = repeat.blocks[1], repeat.blocks[2]
    # The main path comes first and corresponds; the projection stands behind it.
    assert [n.target for n in first.nodes][:2] == ["units.1.conv1", "units.1.bn1"]
    assert [n.target for n in second.nodes][:2] == ["units.2.conv1", "units.2.bn1"]
    assert len(second.nodes) == len(first.nodes) + 2
    assert second.parameters[len(first.parameters) :][0] == "units.2.down.0.weight"


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_replaced_by_surrogates_that_adapt_sizes(surrogate: str) -> None:
    torch.manual_seed(0)
    model = Stages(2, 2, 2)
    result = repl_fx.transform(model, (images(),), surrogate=surrogate)
    assert len(result.plan.replacements) == 2
    gm = result.graph_module
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in gm.parameters()) < 0.9 * before
    gm.train()
    gm(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gm.parameters())
    gm.eval()
    torch.testing.assert_close(repl_fx.fold(gm)(images()), gm(images()), rtol=0, atol=0)


def test_inverted_residuals_of_several_stages() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(
                Inverted(3, 6), Inverted(6, 6), Inverted(6, 10, 2), Inverted(10, 10), Inverted(10, 14), Inverted(14, 14)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x).mean((2, 3))  # type: ignore[no-any-return]

    model = Net()
    repeat = similar_in(model)
    assert [block.name for block in repeat.blocks] == ["blocks.1", "blocks.3", "blocks.5"]
    result = repl_fx.transform(model, (images(),))
    assert [(r.block, r.surrogate) for r in result.plan.replacements] == [("blocks.3", "slim")]


def test_another_kernel_or_activation_is_not_similar() -> None:
    model = Stages(1, 1)
    model.units[1].conv1 = nn.Conv2d(4, 8, 5, 2, 2, bias=False)
    assert not any(r.similar for r in find_repeats(capture(model, (images(),))))


def test_of_units_inside_units_those_that_let_more_go_are_found() -> None:
    layers = [layer for width in (3, 5, 7) for layer in (Nested(width), nn.Conv2d(width, width + 2, 1))]
    repeat = similar_in(nn.Sequential(*layers))
    assert [block.nodes[0].target for block in repeat.blocks] == ["0.into", "2.into", "4.into"]
