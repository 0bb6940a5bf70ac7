"""Blends of slices of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from repl_fx.surrogates.shared import weight_slices
from repl_fx.surrogates.shared.weight_slices import SliceBlend, WeightSlice, blend_slices


@pytest.mark.slow
@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    axis=st.integers(0, 2),
    blends=st.integers(1, 4),
    terms=st.integers(1, 3),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_stacked_blends_are_the_sums_and_so_are_their_gradients(
    sizes: list[int], axis: int, blends: int, terms: int, seed: int
) -> None:
    torch.manual_seed(seed)
    axis %= len(sizes)
    count = torch.randint(1, sizes[axis] + 1, ()).item()
    asked = []
    for _ in range(blends):
        start = torch.randint(0, sizes[axis] - int(count) + 1, ()).item()
        weights = [torch.randn(sizes, dtype=torch.float64, requires_grad=True) for _ in range(terms)]
        gains = torch.randn(terms, int(count), dtype=torch.float64, requires_grad=True)
        asked.append(SliceBlend(WeightSlice(axis, int(start), int(count)), (gains,), tuple(weights)))
    tensors = [t for blend in asked for t in (*blend.gains, *blend.weights)]

    def run(*given_tensors: Tensor) -> tuple[Tensor, ...]:
        each = iter(given_tensors)
        return tuple(
            blend_slices([SliceBlend(b.units, (next(each),), tuple(next(each) for _ in b.weights)) for b in asked])
        )

    for made, blend in zip(run(*tensors), asked, strict=True):
        torch.testing.assert_close(made, weight_slices.blend_one(blend))
    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 4, 1), (1, 1, 1)])
def test_whole_weights_with_gains_in_tensors_of_their_own(shape: tuple[int, ...]) -> None:
    axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    weights = [torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    gains = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        pairs = [(tensors[i : i + 2], tensors[i + 4 : i + 6]) for i in (0, 2)]
        units = WeightSlice(axis, 0, 5 if axis == 0 else 4)
        return tuple(blend_slices([SliceBlend(units, gain, weight) for gain, weight in pairs]))

    a, b, c, d = (gain * weight for gain, weight in zip(gains, weights, strict=True))
    for made, wanted in zip(run(*gains, *weights), (a + b, c + d), strict=True):
        assert torch.equal(made, wanted)
    assert torch.autograd.gradcheck(run, (*gains, *weights))
    assert torch.autograd.gradgradcheck(run, (*gains, *weights))


def test_complex_weights_get_the_gradients_of_ordinary_operators() -> None:
    weights = tuple(torch.randn(3, 2, dtype=torch.complex128, requires_grad=True) for _ in range(2))
    gains = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)

    def run(*tensors: Tensor) -> Tensor:
        return blend_slices([SliceBlend(WeightSlice(0, 0, 3), tensors[:1], tensors[1:])])[0]

    assert torch.autograd.gradcheck(run, (gains, *weights))


def test_a_weight_that_needs_no_gradient_gets_none() -> None:
    weights = (torch.randn(4, 3, requires_grad=True), torch.randn(4, 3))
    gains = torch.randn(2, 2)
    (made,) = blend_slices([SliceBlend(WeightSlice(0, 1, 2), (gains,), weights)])
    torch.autograd.backward(made.sum())
    assert weights[0].grad is not None and weights[1].grad is None and gains.grad is None
    torch.testing.assert_close(weights[0].grad.sum(1), torch.tensor([0.0, gains[0, 0], gains[0, 1], 0.0]) * 3)


class _Counted(TorchDispatchMode):
    """Counts the operators that compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = func._schema.returns and func._schema.returns[0].alias_info is not None
        self.count += not views and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))


def test_few_operators_for_many_blends() -> None:
    """The reason for it all: as many operators for eight blends as for two."""

    def launched(count: int) -> tuple[int, int]:
        weights = [torch.randn(8, 6, requires_grad=True) for _ in range(2 * count)]
        gains = [torch.randn(2, 3, requires_grad=True) for _ in range(count)]
        asked = [
            SliceBlend(WeightSlice(0, 0, 3), (gain,), (weights[2 * i], weights[2 * i + 1]))
            for i, gain in enumerate(gains)
        ]
        with _Counted() as forward:
            made = blend_slices(asked)
        total = torch.stack(made).sum()
        with _Counted() as backward:
            torch.autograd.grad(total, gains)
        return forward.count, backward.count

    assert launched(8) == launched(2)


def test_second_derivatives_of_a_weight_that_stands_twice_in_one_blend() -> None:
    """As a convolution that is the end of a branch and gives its kernel too."""
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    gains = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def run(gains: Tensor, weight: Tensor) -> Tensor:
        return blend_slices([SliceBlend(WeightSlice(0, 1, 2), (gains,), (weight, weight * gains.sum()))])[0]

    once, again = (torch.autograd.grad(run(gains, weight).sum(), weight, create_graph=g) for g in (False, True))
    torch.testing.assert_close(once, again)
    assert torch.autograd.gradgradcheck(run, (gains, weight))
