"""Statistics that a batch norm gets from data."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from repl_fx.fitting.norm_statistics import ChannelStatistics, Distance, is_batch_norm


def test_batches_give_a_norm_what_one_batch_does_in_training() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 4) * 2 + 1
    ours, torchs = nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=1.0)
    statistics = ChannelStatistics()
    for batch in (x[:1], x[1:]):
        statistics.add(batch)
    statistics.set_(ours)
    torchs(x)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean)
    torch.testing.assert_close(ours.running_var, torchs.running_var)


def test_an_average_of_all_batches_goes_on_in_training() -> None:
    torch.manual_seed(0)
    first, second, third = torch.randn(3, 6, 4)
    norm, statistics = nn.BatchNorm1d(4, momentum=None), ChannelStatistics()
    for batch in (first, second):
        statistics.add(batch)
    statistics.set_(norm)
    norm(third)
    torch.testing.assert_close(norm.running_mean, torch.stack([first, second, third]).mean((0, 1)))


def test_statistics_of_vectors_and_sequences_are_by_channel() -> None:
    torch.manual_seed(0)
    for x in (torch.randn(6, 3), torch.randn(6, 3, 5)):
        ours, torchs, statistics = nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=1.0), ChannelStatistics()
        statistics.add(x)
        statistics.set_(ours)
        torchs(x)
        torch.testing.assert_close(ours.running_mean, torchs.running_mean)
        torch.testing.assert_close(ours.running_var, torchs.running_var)


def test_norms_with_statistics_are_told() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2), nn.ReLU())
    gm = fx.symbolic_trace(net)
    assert [is_batch_norm(gm, node) for node in gm.graph.nodes] == [False, True, False, False, False, False]


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
