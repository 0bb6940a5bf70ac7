"""Distances, as a share of the variance."""

from __future__ import annotations

import pytest
import torch

from repl_fx.fitting.distance import Distance


@pytest.mark.parametrize("axis", [1, -1])
def test_batches_add_up_to_the_share_of_all(axis: int) -> None:
    torch.manual_seed(0)
    ours, wanted = (torch.randn(6, 3, 4) + 5 for _ in range(2))
    distance = Distance(axis)
    distance.add(ours[:1], wanted[:1])
    distance.add(ours[1:], wanted[1:])
    others = tuple({0, 1, 2} - {axis % 3})
    spread = (wanted - wanted.mean(others, keepdim=True)).square().sum()
    assert distance.share == pytest.approx(float((ours - wanted).square().sum() / spread), rel=1e-5)
    assert distance.variance == pytest.approx(float(spread), rel=1e-5)


def test_streams_of_several_widths_count_together() -> None:
    torch.manual_seed(0)
    distance, total, spread = Distance(-1), 0.0, 0.0
    for channels in (3, 5):
        ours, wanted = torch.randn(8, channels), torch.randn(8, channels)
        distance.add(ours, wanted)
        total += float((ours - wanted).square().sum())
        spread += float((wanted - wanted.mean(0)).square().sum())
    assert distance.share == pytest.approx(total / spread, rel=1e-5)


def test_nothing_that_varies_is_no_distance() -> None:
    distance = Distance(1)
    distance.add(torch.ones(2, 3), torch.ones(2, 3))
    assert distance.share == 0
