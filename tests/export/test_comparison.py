"""Outputs that cannot be subtracted are failures, those that can are rows."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

import repl_fx
from repl_fx.errors import BadInput, ExportError
from repl_fx.export import TOLERANCES, export_onnx, verify_onnx
from repl_fx.export.onnx_model import quiet
from tests.export.subjects import X
from tests.exporting import Exported


def test_another_shape_or_output_is_a_failure(exported: tuple[fx.GraphModule, Path]) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": x, "label": x.argmax(-1).int(), "extra": x}

    check = verify_onnx(Other(), exported[1], (X,), batches=[4])
    assert not check and len(check.failures) == 3
    assert "'logits' at batch 4 is [4, 16] in PyTorch, [4, 10] in ONNX" in check.failures[0]
    assert "'label' is int32 in PyTorch, int64 in ONNX" in check.failures[1]
    assert "no output 'extra'" in check.failures[2]


def test_nan_is_a_mismatch_even_when_both_have_it(tmp_path: Path) -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    exported = Exported(Log(), tmp_path / "m.onnx", (x,))
    check = exported.verify(batches=[2])
    assert not check
    assert not check.rows[0].finite_torch and not check.rows[0].finite_onnx
    assert "not all finite" in check.summary()
    assert exported.verify((x.abs(),), batches=[2])


def test_float16_is_compared_with_its_own_tolerance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).half()
    check = Exported(module, tmp_path / "m.onnx", (X.half(),)).verify()
    assert check
    assert {row.dtype for row in check.rows} == {"float16"}
    assert check.rows[0].atol == TOLERANCES[torch.float16].atol


def test_a_run_that_the_runtime_refuses_is_a_failure(
    exported: tuple[fx.GraphModule, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr("repl_fx.export.session.OnnxSession.run", fail)
    check = verify_onnx(exported[0], exported[1], (X,), batches=[4])
    assert not check
    assert check.failures == ("ONNX Runtime fails at batch 4: no such kernel",)


class Cancels(nn.Module):
    """The small difference of two large products: rounding is large next to the result."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(512, 8)
        self.b = nn.Linear(512, 8)
        with torch.no_grad():
            self.a.weight.mul_(100)
            self.b.weight.copy_(self.a.weight + 0.02 * torch.randn(8, 512))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) - self.b(x)  # type: ignore[no-any-return]


def test_rounding_that_a_model_lets_grow_is_no_mismatch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Cancels().eval(), torch.randn(64, 512)
    exported = Exported(model, tmp_path / "cancels.onnx", (x,))
    check = exported.verify()
    assert check and any("three times what PyTorch's own result is from float64's" in note for note in check.notes)
    # A tolerance that was asked for is kept.
    assert not exported.verify(atol=TOLERANCES[torch.float32].atol)
    assert not exported.verify(rtol=TOLERANCES[torch.float32].rtol)
    with torch.no_grad():
        model.b.bias.add_(0.01)
    assert not verify_onnx(model, exported.path, (x,))


class CastsAndCancels(Cancels):
    """Casts to the dtype of its weights, which a trace writes down as float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.a.weight.dtype) * 1)


@pytest.mark.slow
def test_rounding_is_told_from_error_where_a_cast_to_single_is_fixed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = CastsAndCancels().eval(), torch.randn(64, 512)
    gm = repl_fx.capture(model, (x,))
    assert "torch.float32" in gm.code
    check = Exported(gm, tmp_path / "casts.onnx", (x,)).verify()
    assert check and any("from float64's" in note for note in check.notes)


def test_rounding_in_half_precision_is_told_from_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Cancels().eval().half(), torch.randn(64, 512).half()
    with torch.no_grad():
        model.b.weight.copy_(model.a.weight + 0.04 * torch.randn(8, 512).half())
    gm = repl_fx.capture(model, (x,))
    exported = Exported(gm, tmp_path / "half.onnx", (x,))
    check = exported.verify()
    assert check and any("from float64's" in note for note in check.notes)
    with torch.no_grad():
        gm.get_parameter("b.bias").add_(2)
    assert not verify_onnx(gm, exported.path, (x,))


class Counts(nn.Module):
    """Moves a buffer in evaluation too, by one forward a step, and counts its calls in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.calls = 0
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.append(self.calls)
        self.mean = self.get_buffer("mean").mul(0.5).add(x.mean(0))
        return self.linear(x) * 2  # type: ignore[no-any-return]


class Writes(Counts):
    """The same, in place, returning what it wrote."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        mean = self.get_buffer("mean")
        result = self.linear(x) + mean
        mean.add_(x.mean(0))
        return result  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Counts, Writes])
def test_export_and_verification_leave_the_state_of_a_module_alone(tmp_path: Path, kind: type[Counts]) -> None:
    torch.manual_seed(0)
    module, x = kind().train(), torch.randn(3, 4)
    buffer, path = module.get_buffer("mean"), tmp_path / "m.onnx"
    if kind is Writes:
        with pytest.raises(ExportError, match="the outputs depend on buffer mean, which each forward changes"):
            export_onnx(module, path, (x,))
        assert not path.exists()
    else:
        export_onnx(module, path, (x,))
        # Each batch is compared from the state that was exported on.
        assert verify_onnx(module, path, (x,))
    assert module.get_buffer("mean") is buffer and not buffer.any()
    assert module.calls == 0 and module.sizes == [] and module.training


class TwoNames(nn.Module):
    """Two inputs and two outputs, all of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"sum": self.linear(first) + second, "gap": self.linear(first) - second}


def renamed(path: Path, names: dict[str, str], keep: int | None = None, extra: str | None = None) -> Path:
    """A copy of the file with other names for its inputs and outputs, fewer outputs, or one more."""
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    if keep is not None:
        del model.graph.output[keep:]
    if extra is not None:
        more = model.graph.output.add()
        more.CopyFrom(model.graph.output[0])
        more.name = extra
        model.graph.node.append(onnx.helper.make_node("Identity", [model.graph.output[0].name], [extra]))
    copy = path.with_name("renamed.onnx")
    onnx.save(model, str(copy))
    return copy


def test_a_file_with_names_of_its_own_is_compared_by_position(tmp_path: Path) -> None:
    module, args = TwoNames().eval(), (torch.randn(3, 4), torch.randn(3, 4))
    exported = Exported(module, tmp_path / "m.onnx", args)
    path = exported.path
    assert exported.verify().notes == ()

    check = verify_onnx(module, renamed(path, {"sum": "a", "gap": "b", "first": "c", "second": "d"}), args)
    assert check and check.failures == ()
    assert check.notes == (
        "inputs compared by position: the file calls them c, d",
        "outputs compared by position: the file calls them a, b",
    )
    assert "by position" in check.summary() and "by position" in check.to_json()["notes"][0]
    # One name of two is another: its place is clear. The other file has the outputs in another order.
    assert exported.verify(path=renamed(path, {"sum": "a"}))
    assert not exported.verify(path=renamed(path, {"sum": "gap", "gap": "sum"}))
    check = exported.verify(path=renamed(path, {"sum": "gap", "gap": "b"}))
    assert not check and "no output 'sum'" in check.failures[0]
    with pytest.raises(BadInput, match="takes the inputs second, b, the module first, second"):
        exported.verify(path=renamed(path, {"first": "second", "second": "b"}))


def test_a_file_with_an_output_more_or_less_is_refused(tmp_path: Path) -> None:
    module, args = TwoNames().eval(), (torch.randn(3, 4), torch.randn(3, 4))
    exported = Exported(module, tmp_path / "m.onnx", args)
    check = exported.verify(path=renamed(exported.path, {}, keep=1))
    assert not check and check.failures == ("the file has no output 'gap', it has sum",)
    check = exported.verify(path=renamed(exported.path, {}, extra="more"))
    assert not check
    assert check.failures == ("the file has 3 outputs, the module 2: it does not return more",)


@pytest.mark.slow
def test_a_plain_export_of_torch_is_compared(tmp_path: Path) -> None:
    module, args = TwoNames().eval(), (torch.randn(3, 4), torch.randn(3, 4))
    batch = {0: torch.export.Dim.DYNAMIC}
    with quiet():
        torch.onnx.export(
            module, args, str(tmp_path / "m.onnx"), dynamo=True, verbose=False, dynamic_shapes=(batch, batch)
        )
    check = verify_onnx(repl_fx.capture(module, args), tmp_path / "m.onnx", args)
    assert check and any("by position" in note for note in check.notes)


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x * 0.01))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_double_model_is_compared_as_closely_as_attributes_allow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Double().double(), torch.randn(4, 8, dtype=torch.float64)
    exported = Exported(model, tmp_path / "m.onnx", (x,))
    check = exported.verify()
    assert check and any("ONNX keeps the attributes of operators in float32" in note for note in check.notes)
    assert all(0 < row.max_abs < 1e-6 for row in check.rows)
    assert not exported.verify(atol=1e-14)
    with torch.no_grad():
        model.fc.bias.add_(1e-5)
    assert not verify_onnx(model, exported.path, (x,))


def test_numbers_of_a_double_model_keep_their_digits(tmp_path: Path) -> None:
    class Scales(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0.1 + 1 / 3).clamp(0.2).pow(0.7) / 3.3

    model, x = Scales(), torch.randn(4, 8, dtype=torch.float64)
    check = Exported(model, tmp_path / "m.onnx", (x,)).verify(atol=1e-15)
    assert check, check.summary()
