"""Models without some of their blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.planning.scoring.skipping import MeanLosses, Skipping
from repl_fx.running.batches import Batches, Evaluation
from repl_fx.tracing.parts.part_repeats import find_in_parts
from tests.planning.scoring.nets import Plane, mean_square


def _skipping(net: nn.Module, x: Tensor) -> Skipping:
    return Skipping(find_in_parts(repl_fx.capture_parts(net.eval(), (x,))))


def test_each_block_can_be_skipped_alone_the_ends_too() -> None:
    net, x = Plane(), torch.randn(4, 2)
    models = _skipping(net, torch.randn(2, 2)).one_by_one()
    assert list(models) == ["blocks.0", "blocks.1", "blocks.2"]
    for number, model in enumerate(models.values()):
        rest = nn.Sequential(*(block for i, block in enumerate(net.blocks) if i != number))
        assert torch.equal(model(x), rest(x)) and not model.training


def test_a_plan_takes_no_end() -> None:
    skipping = _skipping(Plane(), torch.randn(2, 2))
    names = ["blocks.0", "blocks.1", "blocks.2"]
    assert list(skipping.allowed((), names)) == list(skipping.further((), names)) == ["blocks.1"]
    assert not skipping.further(("blocks.1",), ["blocks.0", "blocks.2"])


class Watched(Plane):
    """Adds the difference that its second block makes to the result."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x)
        turned = self.get_submodule("blocks.1.turn")(first)
        return self.blocks[2](first + turned) + turned.abs().sum()  # type: ignore[no-any-return]


def test_a_block_that_cannot_be_skipped_has_a_reason() -> None:
    skipping = _skipping(Watched(), torch.randn(2, 2))
    assert list(skipping.one_by_one()) == ["blocks.0", "blocks.2"]
    assert "is used outside the block" in skipping.refusals["blocks.1"]
    assert not skipping.further((), ["blocks.1"])


@torch.no_grad()
def test_losses_are_means_over_samples() -> None:
    net = Plane().eval()
    x, y = torch.randn(9, 2), torch.randn(9, 2)
    losses = MeanLosses({"whole": net}, mean_square, Evaluation(net))
    for batch in Batches([(x[:7], y[:7]), (x[7:], y[7:])], nn.Identity(), paired=True):
        losses.add(batch)
    assert losses.means == {"whole": pytest.approx(float(mean_square(net(x), y)), rel=1e-6)}
