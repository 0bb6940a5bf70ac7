"""Thin layers: how slices of neighbours get the sizes of the removed block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

import repl_fx
from repl_fx.surrogates.shared.thin_layer import ThinShape, ThinSynthesis, WeightForm, _folded
from tests.nets import ConvNet, as_after_training, images
from tests.surrogates.nets import Shrinking


@given(rows=st.integers(1, 3), have=st.integers(1, 9), size=st.integers(1, 9))
def test_columns_are_folded_or_come_again(rows: int, have: int, size: int) -> None:
    given_ = torch.randn(rows, have, dtype=torch.float64)
    expected = torch.zeros(rows, size, dtype=torch.float64)
    for column in range(max(have, size)):
        if have >= size:
            expected[:, column % size] += given_[:, column]
        else:
            expected[:, column] = given_[:, column % have]
    torch.testing.assert_close(_folded(given_.t(), size).t(), expected)


@given(have=st.integers(1, 9), count=st.integers(1, 9), inner=st.lists(st.integers(1, 3), max_size=3))
def test_rows_are_folded_or_come_again(have: int, count: int, inner: list[int]) -> None:
    given_ = torch.randn(have, *inner, dtype=torch.float64)
    expected = torch.zeros(count, *inner, dtype=torch.float64)
    for row in range(max(have, count)):
        if have >= count:
            expected[row % count] += given_[row]
        else:
            expected[row] = given_[row % have]
    torch.testing.assert_close(_folded(given_, count), expected)


def _syntheses(gm: torch.fx.GraphModule) -> list[ThinSynthesis]:
    return [module for module in gm.modules() if isinstance(module, ThinSynthesis)]


@pytest.mark.slow
def test_weights_of_one_shape_are_blended_together_and_others_one_by_one() -> None:
    settings = {"weights": "neighbours"}
    gm = repl_fx.transform(ConvNet(depth=3), (images(),), surrogate="bottleneck", settings=settings).graph_module
    assert all(len(piece.sources) == 2 for made in _syntheses(gm) for piece in made.pieces)

    x = torch.randn(2, 8, 16, 16)
    gm = repl_fx.transform(Shrinking(), (x,), surrogate="bottleneck", settings=settings).graph_module
    made = _syntheses(gm)
    assert {len(piece.sources) for synthesis in made for piece in synthesis.pieces} == {1, 2}
    as_after_training(gm)
    gm(x).square().sum().backward()
    for name in ("blocks.0.conv1.weight", "blocks.2.conv1.weight"):
        gradient = gm.get_parameter(name).grad
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.any()
    folded = repl_fx.fold(gm.eval())
    torch.testing.assert_close(folded(x), gm(x), rtol=0, atol=0)


ENTRY, EXIT, KERNEL = (WeightForm(role, transposed=False, groups=1) for role in ("entry", "exit", "kernel"))


@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 3),
    inner=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]),
)
@settings(max_examples=20)
def test_pointwise_form_of_a_grouped_kernel_is_the_convolution_of_constant_images(
    groups: int, rows: int, inner: int, kernel: int
) -> None:
    weight = torch.randn(groups * rows, inner, kernel, kernel, dtype=torch.float64)
    x = torch.randn(1, groups * inner, 1, 1, dtype=torch.float64)
    padded = x.expand(-1, -1, kernel, kernel)
    expected = F.conv2d(padded, weight, groups=groups).flatten()
    dense = WeightForm("entry", transposed=False, groups=groups).pointwise(weight)
    assert torch.allclose(dense @ x.flatten(), expected)


def test_transposed_form() -> None:
    weight = torch.randn(3, 5)
    assert torch.equal(WeightForm("entry", transposed=True, groups=1).pointwise(weight), weight.t())


def _synthesis(width: int, given: list[Tensor], own: list[Tensor], **settings: Any) -> ThinSynthesis:
    """A synthesis from two neighbours that are laid out like the removed block."""
    sizes = {"bias_in": True, "bias_out": True, "zero_init": False} | settings
    forms = [[ENTRY, EXIT, *[KERNEL] * (len(own) - 2)]] * 3
    return ThinSynthesis(ThinShape(width, **sizes), forms, given, own, train_neighbours=True)


def test_synthesis_is_the_formula_of_its_docstring() -> None:
    entry, end = torch.randn(2, 7, 5), torch.randn(2, 5, 7)
    given_weights = [entry[0], end[0], entry[1], end[1]]
    made = _synthesis(3, given_weights, [entry[0], end[0]])
    weight_in, weight_out, bias_in, bias_out = made(*given_weights)
    expected_in, expected_out = torch.zeros(3, 5), torch.zeros(5, 3)
    for neighbour in range(2):
        for j in range(3):
            expected_in[j] += made.gain_in[3 * neighbour + j] * entry[neighbour, j]
            expected_out[:, j] += made.gain_out[3 * neighbour + j] * end[neighbour, :, j]
    assert torch.allclose(weight_in, expected_in, atol=1e-6)
    assert torch.allclose(weight_out, expected_out, atol=1e-6)
    assert bias_in.shape == (3,) and bias_out.shape == (5,)


def test_all_rows_of_a_grouped_weight_count() -> None:
    """One row of a depthwise kernel sees one channel."""
    entry, end = torch.randn(2, 6, 1, 3, 3), torch.randn(2, 6, 6)
    forms = [[WeightForm("entry", transposed=False, groups=6), EXIT]] * 3
    given_weights = [entry[0], end[0], entry[1], end[1]]
    shape = ThinShape(2, bias_in=False, bias_out=False, zero_init=True)
    made = ThinSynthesis(shape, forms, given_weights, given_weights[:2], train_neighbours=True)
    weight_in, weight_out = made(*given_weights)
    expected = torch.zeros(2, 6)
    for neighbour in range(2):
        for i in range(6):
            expected[i % 2, i] += made.gain_in[6 * neighbour + i] * entry[neighbour, i].sum()
    torch.testing.assert_close(weight_in, expected)
    assert weight_out.abs().max() == 0


def test_rows_are_about_as_long_as_those_of_the_removed_block() -> None:
    weights = [torch.randn(64, 16) * s for s in (3.0, 0.1, 5.0, 0.2)]
    entry, end = weights[0::2], [w.t() for w in weights[1::2]]
    own = [torch.randn(64, 16) * 2, torch.randn(16, 64) * 0.5]
    given_weights = [entry[0], end[0], entry[1], end[1]]
    made = _synthesis(8, given_weights, own, bias_in=False, bias_out=False)
    for thin, removed in zip(made(*given_weights), own, strict=True):
        lengths = [w.norm(dim=1).square().mean().sqrt().item() for w in (thin, removed)]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.2)


def test_gradients_are_right() -> None:
    weights = [torch.randn(4, 3, 3, 3), torch.randn(3, 4, 1, 1), torch.randn(4, 3, 3, 3)] * 2
    weights = [w.double().clone().requires_grad_() for w in weights]
    made = _synthesis(2, weights, weights[:3]).double()
    assert torch.autograd.gradcheck(lambda *w: made(*w), weights)
