"""Statistics that a batch norm gets from data."""

from __future__ import annotations

import torch
from torch import fx, nn

from repl_fx.fitting.norm_statistics import ChannelStatistics, is_batch_norm


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
