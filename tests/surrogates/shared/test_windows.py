"""Windows over the positions of a stream."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from repl_fx.surrogates.shared.windows import TokenWindows, mix_positions


@given(positions=st.integers(2, 300), ratio=st.floats(0.01, 1.0))
def test_windows_divide_the_positions_of_a_sequence(positions: int, ratio: float) -> None:
    windows = TokenWindows.of(torch.empty(1, positions, 1), ratio)
    assert len(windows.window) == positions
    assert set(windows.window) == set(range(windows.count)) and windows.count <= positions
    sizes = [windows.window.count(i) for i in range(windows.count)]
    assert min(sizes) >= 1


def test_patches_are_grouped_along_both_sides() -> None:
    assert TokenWindows.of(torch.empty(1, 17, 1), 0.25).window == (0, *[1, 1, 2, 2] * 2, *[3, 3, 4, 4] * 2)
    # 14x14 patches and a class token, 16x16 and five tokens, none at all; a sentence.
    assert [TokenWindows.of(torch.empty(1, n, 1), 1 / 16).count for n in (197, 261, 64, 128)] == [10, 21, 4, 8]


def test_positions_are_mixed_in_the_precision_of_the_stream() -> None:
    matrix, stream = torch.randn(2, 5), torch.randn(3, 5, 4)
    assert torch.equal(mix_positions(matrix, stream), torch.matmul(matrix, stream))
    assert mix_positions(matrix, stream.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mix_positions(matrix, stream)
    torch.testing.assert_close(mixed, (matrix.double() @ stream.double()).float())
