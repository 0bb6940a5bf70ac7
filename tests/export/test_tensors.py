"""Between nested arguments and results and the flat, named tensors of an ONNX graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, fx, nn

from repl_fx.errors import BadInput
from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.tensors import at_batch, default_batches, draw, flatten_inputs, name_outputs
from repl_fx.running.example_inputs import ExampleInputs
from tests.export.running import run
from tests.export.subjects import ConvNet, X


def test_keywords_in_another_order_keep_their_names(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, *, b: Tensor, c: Tensor) -> Tensor:
            return a + 2 * b - c

    a, b, c = torch.randn(3, 2, 4)
    path = export_onnx(Two(), tmp_path / "m.onnx", (a,), {"c": c, "b": b})
    np.testing.assert_allclose(run(path, a=a, b=b, c=c)["output"], (a + 2 * b - c).numpy(), atol=1e-6)


def test_an_unused_input_a_repeated_result_and_a_returned_input(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, unused: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            y = self.linear(x)
            return y, y, x, self.linear.bias

    module, x = Odd(), torch.randn(2, 4)
    path = export_onnx(fx.symbolic_trace(module), tmp_path / "m.onnx", (x, torch.randn(2, 3)))
    feed = {"x": x}
    if any(value.name == "unused" for value in onnx.load(str(path)).graph.input):
        feed["unused"] = torch.zeros(2, 3)
    found = run(path, **feed)
    assert list(found) == ["output_0", "output_1", "output_2", "output_3"]
    np.testing.assert_array_equal(found["output_0"], found["output_1"])
    np.testing.assert_array_equal(found["output_2"], x.numpy())
    np.testing.assert_array_equal(found["output_3"], module.linear.bias.detach().numpy())


def test_the_same_tensor_for_two_inputs_is_two_inputs(tmp_path: Path) -> None:
    class Minus(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    same, other = torch.ones(2, 3), torch.zeros(2, 3)
    path = export_onnx(Minus(), tmp_path / "m.onnx", (same, same))
    np.testing.assert_array_equal(run(path, a=same, b=other)["output"], np.ones((2, 3)))


def test_dataclass_results_and_nested_inputs(tmp_path: Path) -> None:
    @dataclass
    class Result:
        logits: Tensor
        states: tuple[Tensor, ...]

    class Nested(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], more: dict[str, Tensor]) -> Result:
            return Result(pair[0] @ more["w"], (pair[0] * 1.5, pair[1] + 1))

    x, w = torch.randn(2, 3), torch.randn(3, 3)
    path = export_onnx(Nested(), tmp_path / "m.onnx", ((x, x + 1),), {"more": {"w": w}})
    graph = onnx.load(str(path)).graph
    assert [value.name for value in graph.input] == ["pair_0", "pair_1", "more_w"]
    assert [value.name for value in graph.output] == ["logits", "states_0", "states_1"]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(1, 3, 8, 8),), {}, "batch of 1"),
        ((), {}, "do not fit forward of ConvNet"),
        ((), {"y": torch.zeros(2, 3)}, "do not fit forward of ConvNet"),
        ((3,), {}, "hold no tensor"),
        ((object(),), {}, "argument 'x' is a object"),
    ],
)
def test_unusable_inputs(tmp_path: Path, args: tuple[object, ...], kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        export_onnx(ConvNet(), tmp_path / "m.onnx", args, kwargs)


def test_names_of_nested_inputs_and_of_those_that_are_no_tensors() -> None:
    class Net(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], scale: float, **more: Tensor) -> Tensor:
            return pair[0] * scale + pair[1] + more["pair_1"]

    x = torch.zeros(2)
    flat = flatten_inputs(Net(), ExampleInputs(((x, x + 1), 2.0), {"pair_1": x + 2}))
    assert flat.names == ("pair_0", "pair_1", "pair_1_1")
    assert [tensor[0].item() for tensor in flat.tensors] == [0.0, 1.0, 2.0]


def test_names_of_outputs_and_the_types_of_the_rest() -> None:
    x = torch.zeros(2)
    assert list(name_outputs(x)[0]) == ["output"]
    assert list(name_outputs((x, [x, x]))[0]) == ["output_0", "output_1_0", "output_1_1"]
    tensors, others = name_outputs({"logits": x, "cache": None, "count": 3})
    assert list(tensors) == ["logits"] and others == {"cache": "NoneType", "count": "int"}


@pytest.mark.slow
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
    assert set(draw(tokens, (batch, *tokens.shape[1:]), generator).flatten().tolist()) <= {5, 9, 300, 7, 12}
    assert torch.equal(draw(mask, (batch, *mask.shape[1:]), generator), mask[torch.arange(batch) % 2])
    assert torch.equal(draw(additive, (batch, *additive.shape[1:]), generator), additive[torch.arange(batch) % 2])
    assert torch.equal(draw(mask.bool(), (batch, *mask.shape[1:]), generator), mask.bool()[torch.arange(batch) % 2])
    drawn = draw(torch.randn(4, 500, generator=generator) * 3 + 10, (batch, 500), generator)
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
