"""Verification: equal is equal, and everything else is found out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from repl_fx.errors import BadInput, ExportError
from repl_fx.export import TOLERANCES, Difference, Verification, export_onnx, verify_onnx
from repl_fx.export.verify import _difference, _draw

NO_OVERRIDE = {"rtol": None, "atol": None}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        y = torch.relu(self.norm(self.first(x)))
        y = y + torch.tanh(self.second(y))
        logits = self.head(y)
        return {"logits": logits, "label": logits.argmax(-1), "positive": logits > 0, "cache": None}


X = torch.randn(4, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[fx.GraphModule, Path]:
    torch.manual_seed(0)
    gm = fx.symbolic_trace(Net())
    gm(torch.randn(64, 16))
    return gm, export_onnx(gm, tmp_path_factory.mktemp("net") / "net.onnx", (X,))


def difference(ours: Tensor, theirs: Tensor, **override: float) -> Difference:
    return _difference("y", 2, ours, theirs.numpy(), {**NO_OVERRIDE, **override})


def perturbed(path: Path, directory: Path, name: str, change: float, entry: int | None = None) -> Path:
    """A copy of the file with one weight, or one entry of it, scaled by 1 + change."""
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if t.name == name)
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[slice(None) if entry is None else entry] *= 1 + change
    tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, str(directory / "perturbed.onnx"))
    return directory / "perturbed.onnx"


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
    assert check.skipped == {"output cache": "a NoneType, not a tensor"}
    assert check.settings["provider"] == "CPUExecutionProvider"
    assert check.settings["graph_optimization_level"] == "ORT_ENABLE_ALL"
    assert [gm.training, norm.training, second.training] == [True, True, False]
    assert torch.equal(norm.running_mean, statistics)
    logits = next(row for row in check.rows if row.output == "logits")
    assert logits.top1_agreement == 1.0 and logits.cosine > 1 - 1e-9 and 0 < logits.max_abs < 1e-4
    assert check.summary().startswith("equivalent: 3 outputs at batch 1, 4, 7; ")


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


def test_a_mismatch_is_blamed_on_the_weight_that_differs(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    check = verify_onnx(exported[0], perturbed(exported[1], tmp_path, "second.weight", 0.1), (X,), per_layer=True)
    assert not check
    assert check.notes == ("weights in the file that are not the module's: second.weight",)
    assert "second.weight" in check.summary()


def test_another_graph_in_the_file_is_told_from_other_weights(
    exported: tuple[fx.GraphModule, Path], tmp_path: Path
) -> None:
    model = onnx.load(str(exported[1]))
    next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Sigmoid"
    onnx.save(model, str(tmp_path / "other.onnx"))
    check = verify_onnx(exported[0], tmp_path / "other.onnx", (X,), per_layer=True)
    assert not check
    assert all(layer.passed for layer in check.layers)
    assert "the file holds another graph" in check.summary()


def test_layers_are_compared_in_order(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(exported[0], exported[1], (X,), per_layer=True)
    assert check
    assert [layer.module for layer in check.layers] == ["first", "norm", "second", "head"]
    assert all(layer.passed for layer in check.layers)
    assert check.first_difference is None and check.notes == ()


def test_the_first_layer_that_differs_is_named(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        """Computes something else under export, as a wrong translation of an operator would."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * (1.01 if torch.compiler.is_exporting() else 1.0)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(8, 8)
            self.wrong = Noisy()
            self.after = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.after(self.wrong(self.before(x)))
            return result

    class Leafy(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Noisy) or super().is_leaf_module(m, module_qualified_name)

    holder, x = Holder(), torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    gm = fx.GraphModule(holder, Leafy().trace(holder))
    path = export_onnx(gm, tmp_path / "m.onnx", (x,))
    check = verify_onnx(gm, path, (x,), per_layer=True)
    assert not check
    assert check.first_difference is not None and check.first_difference.module == "wrong"
    assert "begins at wrong" in check.summary()


def test_chosen_layers(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(exported[0], exported[1], (X,), layer_nodes=["tanh"])
    assert [(layer.node, layer.module) for layer in check.layers] == [("tanh", "")]
    with pytest.raises(BadInput, match="no inner value 'nowhere'"):
        verify_onnx(exported[0], exported[1], (X,), layer_nodes=["nowhere"])


def test_layers_need_a_graph(exported: tuple[fx.GraphModule, Path]) -> None:
    module = Net()
    module.load_state_dict(exported[0].state_dict())
    with pytest.raises(BadInput, match="capture it first"):
        verify_onnx(module, exported[1], (X,), per_layer=True)


def test_nan_is_a_mismatch_even_when_both_have_it(tmp_path: Path) -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    path = export_onnx(Log(), tmp_path / "m.onnx", (x,))
    check = verify_onnx(Log(), path, (x,), batches=[2])
    assert not check
    assert not check.rows[0].finite_torch and not check.rows[0].finite_onnx
    assert "not all finite" in check.summary()
    assert verify_onnx(Log(), path, (x.abs(),), batches=[2])


def test_equal_infinities_are_equal_and_others_are_not() -> None:
    ours = torch.tensor([1.0, -math.inf, 2.0])
    assert difference(ours, ours.clone()).passed
    assert not difference(ours, -ours).passed
    assert not difference(ours, torch.tensor([1.0, -3e38, 2.0])).passed
    assert not difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])).passed


def test_a_fill_value_does_not_loosen_the_tolerance_of_the_rest() -> None:
    ours = torch.cat([torch.randn(100, generator=torch.Generator().manual_seed(0)), torch.tensor([-1e9, -3.4e38])])
    theirs = ours.clone()
    theirs[0] += 1e-2
    row = difference(ours, theirs)
    assert row.scale < 10 and not row.passed
    assert difference(ours, ours.clone()).passed


@settings(max_examples=60, deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_the_tolerance_follows_the_scale_and_can_fail(scale: float, dtype: torch.dtype, seed: int) -> None:
    # float16 has neither the small nor the large numbers.
    scale = min(max(scale, 1e-2), 1e3) if dtype == torch.float16 else scale
    ours = (torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    bound = TOLERANCES[dtype].atol * float(ours.abs().max())
    for factor, passes in ((0.5, True), (3.0, False)):
        theirs = ours.clone()
        # At the smallest number, where the relative part adds nothing and adding loses no bits of the shift.
        theirs.view(-1)[ours.abs().argmin()] += factor * bound
        assert difference(ours, theirs).passed is passes


def test_integers_must_be_equal() -> None:
    ours = torch.arange(10)
    assert difference(ours, ours.clone()).passed
    theirs = ours.clone()
    theirs[3] += 1
    row = difference(ours, theirs)
    assert not row.passed and row.max_abs == 1
    large = torch.tensor([2**60, 2**60])
    assert not difference(large, large + 1).passed
    assert not difference(torch.tensor([True, False]), torch.tensor([True, True]), atol=10.0).passed


def test_top1_counts_choices_but_not_ties() -> None:
    ours = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0 - 1e-7], [0.3, 0.4]])
    theirs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0 - 1e-7, 1.0], [0.3, 0.4]])
    assert difference(ours, theirs).top1_agreement == 0.75
    assert difference(ours[:, :1], theirs[:, :1]).top1_agreement is None


def test_tolerances_can_be_set(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    path = perturbed(exported[1], tmp_path, "head.bias", 0.01)
    assert not verify_onnx(exported[0], path, (X,), batches=[4])
    loose = verify_onnx(exported[0], path, (X,), batches=[4], atol=0.1)
    assert [row.passed for row in loose.rows if row.output == "logits"] == [True]
    assert loose.settings["atol"] == 0.1


def test_nothing_compared_is_not_equivalent() -> None:
    assert not Verification(rows=())
    empty = difference(torch.zeros(0, 3), torch.zeros(0, 3))
    assert not Verification(rows=(empty,))
    assert "nothing was compared" in Verification(rows=(empty,)).summary()


def test_another_shape_or_output_is_a_failure(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x, "label": x.argmax(-1).int(), "extra": x}

    check = verify_onnx(Other(), exported[1], (X,), batches=[4])
    assert not check and len(check.failures) == 3
    assert "'logits' at batch 4 is [4, 16] in PyTorch, [4, 10] in ONNX" in check.failures[0]
    assert "'label' is int32 in PyTorch, int64 in ONNX" in check.failures[1]
    assert "no output 'extra'" in check.failures[2]


def test_files_that_are_no_model(exported: tuple[fx.GraphModule, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no ONNX file"):
        verify_onnx(exported[0], tmp_path / "nowhere.onnx", (X,))
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ExportError, match=r"cannot load .*junk.onnx"):
        verify_onnx(exported[0], tmp_path / "junk.onnx", (X,))


def test_inputs_that_do_not_match_name_both(exported: tuple[fx.GraphModule, Path]) -> None:
    class Renamed(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels

    with pytest.raises(BadInput, match="takes the inputs x, the module pixels"):
        verify_onnx(Renamed(), exported[1], (X,))
    with pytest.raises(BadInput, match="has 2 dimensions in"):
        verify_onnx(exported[0], exported[1], (X[None],))
    with pytest.raises(BadInput, match="batch 4 cannot be compared: dimension 1 of input 'x' is fixed to 16"):
        verify_onnx(exported[0], exported[1], (X[:, :8],))


def test_json_is_json(exported: tuple[fx.GraphModule, Path]) -> None:
    check = verify_onnx(exported[0], exported[1], (X,), per_layer=True)
    data = json.loads(json.dumps(check.to_json(), allow_nan=False))
    assert data["equivalent"] is True and len(data["rows"]) == 9 and len(data["layers"]) == 4
    broken = Verification(rows=(difference(torch.tensor([math.nan]), torch.tensor([math.nan])),))
    assert json.loads(json.dumps(broken.to_json(), allow_nan=False))["rows"][0]["max_abs"] == "inf"


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
    assert set(_draw(tokens, batch, generator).flatten().tolist()) <= {5, 9, 300, 7, 12}
    assert torch.equal(_draw(mask, batch, generator), mask[torch.arange(batch) % 2])
    assert torch.equal(_draw(additive, batch, generator), additive[torch.arange(batch) % 2])
    assert torch.equal(_draw(mask.bool(), batch, generator), mask.bool()[torch.arange(batch) % 2])
    drawn = _draw(torch.randn(4, 500, generator=generator) * 3 + 10, batch, generator)
    assert drawn.shape == (batch, 500) and drawn.dtype == torch.float32
    assert abs(float(drawn.mean()) - 10) < 1 and 2 < float(drawn.std()) < 4


def test_float16_is_compared_with_its_own_tolerance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).half()
    path = export_onnx(module, tmp_path / "m.onnx", (X.half(),))
    check = verify_onnx(module, path, (X.half(),))
    assert check
    assert {row.dtype for row in check.rows} == {"float16"}
    assert check.rows[0].atol == TOLERANCES[torch.float16].atol
