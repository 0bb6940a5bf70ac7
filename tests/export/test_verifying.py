"""Verification: equal is equal, and everything else is found out."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.export import export_onnx, verify_onnx
from repl_fx.graph.runtime import ModeSwitch
from tests.export.subjects import X, perturbed
from tests.exporting import Exported


def test_an_export_is_equivalent_at_three_batch_sizes(exported: tuple[fx.GraphModule, Path]) -> None:
    gm, path = exported
    norm, second = gm.get_submodule("norm"), gm.get_submodule("second")
    assert isinstance(norm, nn.BatchNorm1d)
    gm.train()
    second.eval()
    assert norm.running_mean is not None
    statistics = norm.running_mean.clone()
    check = verify_onnx(gm, path, (X,))
    assert check
    assert {(row.output, row.batch) for row in check.rows} == {
        (output, batch) for output in ("logits", "label", "positive") for batch in (1, 4, 7)
    }
    assert check.layers == ()
    assert check.skipped == {"output cache": "a NoneType, not a tensor"}
    assert check.settings["provider"] == "CPUExecutionProvider"
    assert check.settings["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert [gm.training, norm.training, second.training] == [True, True, False]
    assert torch.equal(norm.running_mean, statistics)
    logits = next(row for row in check.rows if row.output == "logits")
    assert logits.top1_agreement == 1.0 and logits.cosine > 1 - 1e-9 and 0 < logits.max_abs < 1e-4
    assert check.summary().startswith("equivalent: 3 outputs at batch 1, 4, 7; ")


class Unfrozen(nn.Module):
    """A norm that goes by the batch in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> Unfrozen:
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))  # type: ignore[no-any-return]


def test_the_module_runs_as_its_own_eval_leaves_it(tmp_path: Path) -> None:
    gm = repl_fx.capture(Unfrozen(), (X[:, :4],))
    # The exporter writes all norms as they evaluate.
    assert not Exported(gm, tmp_path / "m.onnx", (X[:, :4],)).verify()
    assert gm.get_submodule("norm").training


class Masked(nn.Module):
    """Attention over the tokens that a mask shows: ones of numbers, or False of truths."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = mask if mask.dtype == torch.bool else mask == 0
        scores = (self.fc(x) @ x.mT).masked_fill(hidden[:, None], -1e4)
        return scores.softmax(-1) @ x  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (torch.ones(3, 6, dtype=torch.int64), "mask half 0"),
        (torch.ones(3, 6), "mask half 0"),
        (torch.zeros(3, 6, dtype=torch.bool), "mask half 1"),
    ],
    ids=["ids", "floats", "padding"],
)
def test_a_file_that_ignores_a_mask_is_found_by_a_mask_that_hides_nothing(
    tmp_path: Path, mask: Tensor, what: str
) -> None:
    torch.manual_seed(0)
    given = torch.randn(3, 6, 4), mask
    kept = given[1].clone()
    exported = Exported(repl_fx.capture(Masked(), given), tmp_path / "m.onnx", given)
    check = exported.verify()
    assert check and what in {row.sizes for row in check.rows} and not check.skipped
    model = onnx.load(str(tmp_path / "m.onnx"))
    for node in model.graph.node:
        node.input[:] = ["shown" if name == "mask" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(mask[:1, :1].numpy(), "shown"))
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert f"at batch 3, {what}: DIFFERS" in exported.verify().summary()
    assert torch.equal(given[1], kept)


def test_inputs_changed_by_half_that_make_no_numbers_are_skipped(tmp_path: Path) -> None:
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.log() * x

    exported = Exported(repl_fx.capture(Logarithm(), (torch.ones(2, 4),)), tmp_path / "m.onnx", (torch.ones(2, 4),))
    check = exported.verify()
    assert check and check.skipped == {"x half 0": "the module itself returns NaN"}


@pytest.mark.parametrize("name", ["first.weight", "second.weight", "head.weight", "head.bias"])
def test_a_weight_changed_by_one_percent_is_a_mismatch(
    exported: tuple[fx.GraphModule, Path], tmp_path: Path, name: str
) -> None:
    check = verify_onnx(exported[0], perturbed(exported[1], tmp_path, name, 0.01), (X,))
    assert not check
    assert not check.failures and check.rows
    assert check.summary().startswith("not equivalent: ")


def test_a_single_entry_changed_by_one_percent_is_a_mismatch(
    exported: tuple[fx.GraphModule, Path], tmp_path: Path
) -> None:
    entry = int(exported[0].get_parameter("head.weight").abs().argmax())
    assert not verify_onnx(exported[0], perturbed(exported[1], tmp_path, "head.weight", 0.01, entry), (X,))


def test_a_module_without_values_is_refused(exported: tuple[fx.GraphModule, Path]) -> None:
    with pytest.raises(BadInput, match="is on the meta device and has no values to compare; materialise the model"):
        verify_onnx(copy.deepcopy(exported[0]).to("meta"), exported[1], (X,))


def test_tolerances_can_be_set(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    path = perturbed(exported[1], tmp_path, "head.bias", 0.01)
    assert not verify_onnx(exported[0], path, (X,), batches=[4])
    loose = verify_onnx(exported[0], path, (X,), batches=[4], atol=0.1)
    assert [row.passed for row in loose.rows if row.output == "logits"] == [True]
    assert loose.settings["atol"] == 0.1


@pytest.mark.parametrize("batches", [[], [0], [2, 0], [-1], [1.5], [True], ["2"]])
def test_what_is_no_batch_is_refused(exported: tuple[fx.GraphModule, Path], batches: Any) -> None:
    with pytest.raises(BadInput, match=re.escape(f"batches is {batches!r}; give one positive number or more")):
        verify_onnx(*exported, (X,), batches=batches)


class Functional(nn.Module):
    """Normalisation and dropout as functions, and modes that differ in more than a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("var", torch.ones(32))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("num_batches_tracked").add_(1)
        y = F.batch_norm(self.first(x), self.get_buffer("mean"), self.get_buffer("var"), training=self.training)
        y = F.dropout(y, 0.5, self.training)
        y = y.tanh() if self.training else torch.log1p(y.abs())
        result: Tensor = self.head(y)
        return result


@pytest.mark.slow
def test_a_graph_that_switches_its_mode_is_exported_in_evaluation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gm = repl_fx.capture(Functional(), (X,))
    assert sum(isinstance(module, ModeSwitch) for module in gm.modules()) == 2
    gm.train()
    gm(X)
    state = {name: value.clone() for name, value in gm.state_dict().items()}
    assert state["num_batches_tracked"] == 1 and state["mean"].any()

    exported = Exported(gm, tmp_path / "m.onnx", (X,))
    check = exported.verify(per_layer=True)
    assert check
    assert [layer.module for layer in check.layers] == ["first", "mode_switch", "head"]
    assert all(layer.passed for layer in check.layers)
    assert all(module.training for module in gm.modules())
    assert all(torch.equal(value, state[name]) for name, value in gm.state_dict().items())

    # In training it computes something else: the file is that of evaluation.
    gm(X * 3)
    check = verify_onnx(gm, exported.path, (X,), per_layer=True)
    assert not check
    assert {one.name for one in check.weights.altered} == {"mean", "var"}
    assert check.first_difference is not None and check.first_difference.module == "mode_switch"


def test_an_export_inside_of_autocast_has_the_precision_of_the_weights(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = verify_onnx(net, export_onnx(net, tmp_path / "m.onnx", (x,)), (x,))
    assert found
    types = {value.type.tensor_type.elem_type for value in onnx.load(tmp_path / "m.onnx").graph.output}
    assert types == {onnx.TensorProto.FLOAT}
