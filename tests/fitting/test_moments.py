"""Sums over pairs of rows, and what they say."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, strategies as st

from repl_fx.fitting.moments import Moments


@given(cuts=st.lists(st.integers(1, 39), max_size=4), seed=st.integers(0, 99))
def test_batches_add_up_to_the_whole(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(40, 3, generator=generator, dtype=torch.float64) + 5 for _ in range(2))
    parts = Moments(3)
    edges = [0, *sorted(cuts), 40]
    for begin, end in itertools.pairwise(edges):
        parts.add(x[begin:end], y[begin:end])
    assert parts.rows == 40
    torch.testing.assert_close(parts.means, (x.mean(0), y.mean(0)))
    both = torch.cov(torch.cat([x, y], 1).t(), correction=0)
    torch.testing.assert_close(parts.covariances, (both[:3, :3], both[:3, 3:], both.diagonal()[3:]))


def test_what_is_left_over_is_the_distance_of_the_rows() -> None:
    x, y, matrix, shift = (torch.randn(*size, dtype=torch.float64) for size in ((30, 3), (30, 3), (3, 3), (3,)))
    moments = Moments(3)
    moments.add(x.reshape(5, 6, 3), y.reshape(5, 6, 3))
    expected = (x @ matrix + shift - y).square().sum() / (y - y.mean(0)).square().sum()
    assert abs(moments.left_over(matrix, shift) - float(expected)) < 1e-9
