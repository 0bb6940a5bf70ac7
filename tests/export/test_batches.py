"""Inputs at other batch sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, fx, nn

from repl_fx.export import verify_onnx
from repl_fx.export.batches import at_batch, default_batches, draw
from repl_fx.export.tensors import flatten_inputs
from repl_fx.running.example_inputs import ExampleInputs
from tests.export.subjects import X


def test_the_same_seed_draws_the_same_inputs(exported: tuple[fx.GraphModule, Path]) -> None:
    first, second, other = (verify_onnx(exported[0], exported[1], (X,), seed=seed) for seed in (0, 0, 1))
    assert first.rows == second.rows
    assert first.rows != other.rows


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 6), seed=st.integers(0, 100))
def test_drawn_inputs_look_like_the_example(batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([[5, 9, 300], [5, 7, 12]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    additive = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    assert set(draw(tokens, batch, generator).flatten().tolist()) <= {5, 9, 300, 7, 12}
    assert torch.equal(draw(mask, batch, generator), mask[torch.arange(batch) % 2])
    assert torch.equal(draw(additive, batch, generator), additive[torch.arange(batch) % 2])
    assert torch.equal(draw(mask.bool(), batch, generator), mask.bool()[torch.arange(batch) % 2])
    drawn = draw(torch.randn(4, 500, generator=generator) * 3 + 10, batch, generator)
    assert drawn.shape == (batch, 500) and drawn.dtype == torch.float32
    assert abs(float(drawn.mean()) - 10) < 1 and 2 < float(drawn.std()) < 4


@pytest.mark.parametrize(("traced", "wanted"), [(0, (0,)), (1, (1, 4)), (2, (1, 2, 5)), (4, (1, 4, 7))])
def test_default_batches(traced: int, wanted: tuple[int, ...]) -> None:
    assert default_batches(traced) == wanted


def test_only_what_has_the_batch_gets_another() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor, table: Tensor, scale: Tensor) -> Tensor:
            return x @ table * scale

    inputs = flatten_inputs(Three(), ExampleInputs((torch.randn(2, 3), torch.randn(3, 4), torch.tensor(2.0))))
    assert at_batch(inputs, 2, seed=0) is inputs
    other = at_batch(inputs, 5, seed=0)
    assert [tuple(tensor.shape) for tensor in other.tensors] == [(5, 3), (3, 4), ()]
    assert other.tensors[1] is inputs.tensors[1]
