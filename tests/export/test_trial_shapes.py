"""Other sizes that files are compared at."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from repl_fx.export import export_onnx, verify_onnx
from repl_fx.export.tensors import flatten_inputs
from repl_fx.export.trial_shapes import trial_shapes
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.tracing.capture import capture


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 4, stride=4), nn.ConvTranspose2d(4, 3, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.up(self.down(x)), x])


def test_a_graph_is_tried_at_smaller_and_larger_sizes_within_its_limits() -> None:
    inputs = ExampleInputs((torch.randn(2, 3, 16, 16),))
    gm = capture(Halved(), inputs.args)
    assert trial_shapes(gm, {}, flatten_inputs(gm, inputs)) == {
        "height 8, width 4": [(2, 3, 8, 4)],
        "height 20, width 24": [(2, 3, 20, 24)],
    }


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y.sum()


def test_a_module_is_tried_at_the_sizes_that_the_file_names() -> None:
    inputs = ExampleInputs((torch.randn(2, 6, 4), torch.randn(2, 9)))

    module = Two()
    known: dict[str, list[int | str | None]] = {"x": ["batch", "length", 4], "y": ["batch", "length + 3"]}
    assert trial_shapes(module, known, flatten_inputs(module, inputs)) == {
        "length 3": [(2, 3, 4), (2, 6)],
        "length 9": [(2, 9, 4), (2, 12)],
    }
    # Of more than a sum nothing is known.
    assert trial_shapes(module, {**known, "y": ["batch", "2*length"]}, flatten_inputs(module, inputs)) == {}


def test_a_file_that_is_right_at_the_length_of_the_example_alone_is_found_out(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    class Fifth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) / 5

    x = torch.randn(2, 5, 4)
    file = export_onnx(capture(Fifth(), (x,)), tmp_path / "m.onnx", (x,))
    check = verify_onnx(capture(Mean(), (x,)), file, (x,))
    assert not check and {row.sizes for row in check.rows if not row.passed} == {
        "length 2, features 2",
        "length 6, features 5",
    }
    assert verify_onnx(capture(Mean(), (x,)), file, (x,), batches=[2]).same_outputs
    assert "at batch 2, length 2, features 2" in check.summary() or "at batch 2, length 6" in check.summary()
