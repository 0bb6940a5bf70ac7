"""Export: what is in the file, what stays as it was, and what is left behind when it fails."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, fx, nn
from torch.nn.utils.parametrizations import spectral_norm

import repl_fx
from repl_fx.errors import BadInput, ExportError, OutputError
from repl_fx.export import export_onnx, onnx_model, onnx_name, verify_onnx
from repl_fx.export.onnx_model import quiet
from tests.export.running import run
from tests.export.subjects import ConvNet
from tests.exporting import Exported
from tests.nets import MlpNet, tokens
from tests.releases import fails_on_old_torch


class Encoder(nn.Module):
    """Token ids with an optional mask, keyword inputs, a dict as result, and the head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, scale: bool = True
    ) -> dict[str, Tensor | None]:
        x = self.embed(input_ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2)
        if scale:
            scores = scores / 4.0
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, float("-inf"))
        x = self.norm(x + scores.softmax(-1) @ v)
        return {"logits": self.head(x), "hidden": x, "cache": None}


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 20, (batch, length))


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path]:
    torch.manual_seed(1)
    module = Encoder()
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    mask = torch.ones(2, 7, dtype=torch.long)
    return module, export_onnx(module, path, (ids(),), {"attention_mask": mask, "scale": True})


def test_exports_a_training_graph_as_it_evaluates_and_leaves_it_training(tmp_path: Path) -> None:
    module = ConvNet()
    gm = fx.symbolic_trace(module)
    gm.train()
    module.bn.eval()
    gm(torch.randn(4, 3, 8, 8))
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    modes = {name: child.training for name, child in gm.named_modules()}

    path = export_onnx(gm, tmp_path / "model.onnx", (torch.randn(2, 3, 8, 8),))

    assert path == tmp_path / "model.onnx"
    assert {name: child.training for name, child in gm.named_modules()} == modes
    assert modes["drop"]
    assert not modes["bn"]
    assert all(torch.equal(value, before[name]) for name, value in gm.state_dict().items())
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        expected = gm.eval()(x)
    np.testing.assert_allclose(run(path, x=x)["output"], expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_names_come_from_the_signature_and_the_result(encoder_file: tuple[Encoder, Path]) -> None:
    graph = onnx.load(str(encoder_file[1])).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["logits", "hidden"]
    assert {"qkv.weight", "norm.bias"} <= {tensor.name for tensor in graph.initializer}


def test_batch_and_sequence_are_dynamic(encoder_file: tuple[Encoder, Path]) -> None:
    graph = onnx.load(str(encoder_file[1])).graph
    assert [shape_of(value) for value in graph.input] == [["batch", "length"]] * 2
    assert shape_of(graph.output[0]) == ["batch", "length", 20]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 6), length=st.integers(2, 11))
def test_runs_at_any_batch_and_length(encoder_file: tuple[Encoder, Path], batch: int, length: int) -> None:
    module, path = encoder_file
    tokens = ids(batch, length)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[:, length // 2 + 1 :] = 0
    with torch.no_grad():
        expected = module(tokens, mask)
    found = run(path, input_ids=tokens, attention_mask=mask)
    np.testing.assert_allclose(found["logits"], expected["logits"].numpy(), atol=1e-4)


def test_an_optional_input_left_out_is_no_input(tmp_path: Path) -> None:
    path = export_onnx(Encoder(), tmp_path / "m.onnx", (), {"input_ids": ids(), "attention_mask": None})
    assert [value.name for value in onnx.load(str(path)).graph.input] == ["input_ids"]


def test_tied_weights_are_stored_once(encoder_file: tuple[Encoder, Path]) -> None:
    shapes = [tuple(tensor.dims) for tensor in onnx.load(str(encoder_file[1])).graph.initializer]
    # Stored transposed for the head it would be a second copy under another shape.
    assert shapes.count((20, 16)) + shapes.count((16, 20)) == 1


def test_no_trace_of_the_machine_in_the_file(encoder_file: tuple[Encoder, Path]) -> None:
    assert str(Path(__file__).parent).encode() not in encoder_file[1].read_bytes()


def test_outputs_have_names_that_no_input_and_no_other_output_has(tmp_path: Path) -> None:
    class Clash(nn.Module):
        def forward(self, x: Tensor, y_out: Tensor) -> dict[str, Tensor]:
            return {"x_out": x * 2, "x": x + 1, "y_out": y_out - x}

    module, given = Clash(), (torch.randn(2, 4), torch.randn(2, 4))
    path = export_onnx(module, tmp_path / "m.onnx", given)
    assert [output.name for output in onnx.load(path).graph.output] == ["x_out", "x_out_1", "y_out_out"]
    assert verify_onnx(module, path, given).notes == ()


def test_a_model_of_numbers_has_no_batch(tmp_path: Path) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 4)

        def forward(self, time: Tensor) -> Tensor:
            made: Tensor = self.linear(time[None])
            return made * time

    module, time = Embedded(), torch.tensor(2.0)
    assert verify_onnx(module, export_onnx(module, tmp_path / "m.onnx", (time,)), (time,))


def test_names_of_the_interface_do_not_clash_with_inner_values(tmp_path: Path) -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, relu: Tensor) -> dict[str, Tensor]:
            y = torch.relu(self.linear(relu))
            return {"relu": y.tanh(), "linear": (y + 1).exp()}

    module, x = Clash(), torch.randn(2, 4)
    path = export_onnx(module, tmp_path / "m.onnx", (x,))
    found, expected = run(path, relu=x), module(x)
    np.testing.assert_allclose(found["relu_out"], expected["relu"].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(found["linear"], expected["linear"].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("how", ["asked", "too large"])
def test_external_data_is_found_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x)
            return result

    if how == "too large":
        monkeypatch.setattr(onnx_model, "INLINE_LIMIT", 1000)
    module, x = Wide(), torch.randn(2, 64)
    path = export_onnx(module, tmp_path / "wide.onnx", (x,), external_data=True if how == "asked" else None)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["wide.onnx", "wide.onnx.data"]
    stored = onnx.load(str(path), load_external_data=False).graph.initializer
    places = {entry.value for tensor in stored for entry in tensor.external_data if entry.key == "location"}
    assert places == {"wide.onnx.data"}
    np.testing.assert_allclose(run(path, x=x)["output"], module(x).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_data_that_no_model_refers_to_any_more_is_removed(tmp_path: Path) -> None:
    module, x = nn.Linear(64, 64), torch.randn(2, 64)
    export_onnx(module, tmp_path / "m.onnx", (x,), external_data=True)
    export_onnx(module, tmp_path / "other.onnx", (x,), external_data=True)
    export_onnx(module, tmp_path / "m.onnx", (x,))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.onnx", "other.onnx", "other.onnx.data"]
    assert verify_onnx(module, tmp_path / "m.onnx", (x,))
    assert verify_onnx(module, tmp_path / "other.onnx", (x,))


@pytest.mark.slow
def test_a_second_export_replaces_the_data_of_the_first(tmp_path: Path) -> None:
    first, second, x = nn.Linear(64, 64), nn.Linear(64, 64), torch.randn(2, 64)
    path = export_onnx(first, tmp_path / "m.onnx", (x,), external_data=True)
    assert verify_onnx(first, path, (x,))
    stale = (tmp_path / "m.onnx.data").read_bytes()
    export_onnx(second, path, (x,), external_data=True)
    assert (tmp_path / "m.onnx.data").read_bytes() != stale
    assert verify_onnx(second, path, (x,))
    # The weights of one export beside the graph of another are found out.
    (tmp_path / "m.onnx.data").write_bytes(stale)
    assert not verify_onnx(second, path, (x,))


def test_data_beside_no_model_is_left_alone(tmp_path: Path) -> None:
    stranger = tmp_path / "m.onnx.data"
    stranger.write_text("of somebody else")
    for _ in range(2):
        # Nor beside a model that has its weights in itself.
        export_onnx(nn.Linear(4, 4), tmp_path / "m.onnx", (torch.randn(2, 4),))
    assert stranger.read_text() == "of somebody else"


def test_data_stays_with_the_old_model_when_the_export_fails(tmp_path: Path) -> None:
    module, x = nn.Linear(64, 64), torch.randn(2, 64)
    export_onnx(module, tmp_path / "m.onnx", (x,), external_data=True)
    with pytest.raises(BadInput):
        export_onnx(module, tmp_path / "m.onnx", (torch.randn(2, 3),))
    assert verify_onnx(module, tmp_path / "m.onnx", (x,))


def test_small_models_are_one_file(tmp_path: Path) -> None:
    export_onnx(nn.Linear(4, 4), tmp_path / "m.onnx", (torch.randn(2, 4),))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_an_untranslatable_operator_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    class Exotic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.abs(torch.linalg.eigvals(x))

    old = tmp_path / "m.onnx"
    old.write_bytes(b"the model of before")
    with pytest.raises(ExportError, match=r"Exotic cannot be exported to ONNX: .*linalg_eig") as caught:
        export_onnx(Exotic(), old, (torch.randn(2, 3, 3),))
    assert "\n" not in str(caught.value)
    assert old.read_bytes() == b"the model of before"
    assert list(tmp_path.iterdir()) == [old]


def test_data_dependent_control_flow_is_an_export_error(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while x.sum() > 1:
                x = x / 2
            return x

    with pytest.raises(ExportError, match="refuses it"):
        export_onnx(Branch(), tmp_path / "m.onnx", (torch.randn(2, 3),))
    assert not list(tmp_path.iterdir())


def test_the_mode_is_restored_after_a_failure(tmp_path: Path) -> None:
    module = ConvNet().train()
    with pytest.raises(BadInput, match="fails on the example inputs"):
        export_onnx(module, tmp_path / "m.onnx", (torch.randn(2, 4, 8, 8),))
    assert all(child.training for child in module.modules())


def test_a_file_the_checker_refuses_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise onnx.checker.ValidationError("bad node\nmore")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match=r"no valid ONNX: bad node$"):
        export_onnx(nn.Linear(4, 4), tmp_path / "m.onnx", (torch.randn(2, 4),))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/m.onnx", "."])
def test_an_unwritable_place_is_refused_before_any_work(tmp_path: Path, place: str) -> None:
    with pytest.raises(OutputError, match="directory"):
        export_onnx(nn.Linear(4, 4), tmp_path / place, (torch.randn(2, 4),))


@pytest.mark.slow
def test_opset(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(4, 4), tmp_path / "m.onnx", (torch.randn(2, 4),), opset=18)
    assert onnx.load(str(path)).opset_import[0].version == 18
    with pytest.raises(ExportError, match=r"the model cannot be written in opset 7; the nearest it can be is 17$"):
        export_onnx(nn.LayerNorm(4), tmp_path / "old.onnx", (torch.randn(2, 4),), opset=7)
    assert not (tmp_path / "old.onnx").exists()
    export_onnx(nn.LayerNorm(4), tmp_path / "nearest.onnx", (torch.randn(2, 4),), opset=17)
    with pytest.raises(BadInput, match="opset 999 does not exist"):
        export_onnx(nn.Linear(4, 4), tmp_path / "m.onnx", (torch.randn(2, 4),), opset=999)


class Recurrent(nn.Module):
    """A recurrent layer over token ids."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(9, 6), kind(6, 4, **options)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.embed(ids)
        made: Tensor = self.layer(embedded if self.layer.batch_first else embedded.transpose(0, 1))[0]
        return made if self.layer.batch_first else made.transpose(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {"batch_first": True}),
        (nn.LSTM, {"bidirectional": True, "num_layers": 2, "bias": False}),
        (nn.GRU, {"batch_first": True}),
        (nn.GRU, {"bidirectional": True, "num_layers": 2}),
        (nn.RNN, {"batch_first": True, "nonlinearity": "relu"}),
        (nn.RNN, {"bidirectional": True, "num_layers": 2}),
        (nn.RNN, {"batch_first": True, "bias": False}),
    ],
)
def test_a_recurrent_layer_takes_sequences_of_any_length(tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, example = Recurrent(kind, **options).eval(), torch.randint(9, (3, 5))
    graph = repl_fx.capture(model, (example,))
    path = export_onnx(graph, tmp_path / "m.onnx", (example,))
    session = ort.InferenceSession(path)
    for size in ((3, 5), (2, 1), (1, 11)):
        ids = torch.randint(9, size)
        wanted = model(ids)
        assert torch.equal(graph.eval()(ids), wanted)
        found = session.run(None, {session.get_inputs()[0].name: ids.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


class HalfALetter(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return {"\udc80": super().forward(x)}


def test_an_output_whose_name_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the output '\\udc80' has half a letter in its name"):
        export_onnx(HalfALetter(2, 2), tmp_path / "m.onnx", (torch.randn(2, 2),))


def test_an_lstm_with_a_projection_is_refused(tmp_path: Path) -> None:
    model = Recurrent(nn.LSTM, proj_size=2, batch_first=True)
    with pytest.raises(ExportError, match=r"^layer is an LSTM with proj_size, which ONNX has no operator for"):
        export_onnx(model, tmp_path / "m.onnx", (torch.randint(9, (3, 5)),))


def test_nothing_is_printed_or_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("torch.onnx").level
    export_onnx(Encoder(), tmp_path / "m.onnx", (ids(),), opset=18)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx").level == level


class ByValue(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x * 2


def test_graphs_of_attempts_that_failed_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=r"torch\.export refuses it: Could not guard"):
        export_onnx(ByValue(8, 8), tmp_path / "m.onnx", (torch.randn(2, 8),))
    assert capfd.readouterr() == ("", "")


def test_values_that_code_asks_for_are_asked_of_all_sizes_and_of_the_fewest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, export = [], torch.onnx.export

    def counted(*args: Any, **options: Any) -> Any:
        attempts.append(options["dynamic_shapes"])
        return export(*args, **options)

    monkeypatch.setattr(torch.onnx, "export", counted)
    with pytest.raises(ExportError, match=r"torch\.export refuses it: Could not guard"):
        export_onnx(ByValue(8, 8), tmp_path / "m.onnx", (torch.randn(2, 5, 8),))
    assert len(attempts) == 2 and attempts[0] != attempts[1]


def test_a_batch_the_model_insists_on_stays_static(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 3 else x * 3

    exported = Exported(Fixed(), tmp_path / "m.onnx", (torch.randn(3, 4),))
    assert shape_of(onnx.load(str(exported.path)).graph.input[0]) == [3, "length"]
    check = exported.verify((torch.randn(3, 4),))
    assert check and {row.sizes for row in check.rows} == {"", "length 2", "length 5"}
    assert set(check.skipped) == {"batch 1", "batch 6"}
    assert check.skipped["batch 1"] == "dimension 0 of input 'x' is fixed to 3 in the file, the inputs have 1"


class Halved(nn.Module):
    """Keeps the first half of a text, by a length in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, : int(x.shape[1] * 0.5)]  # type: ignore[no-any-return]


def test_a_file_of_a_module_that_is_no_graph_has_no_numbers_where_its_code_goes_another_way(tmp_path: Path) -> None:
    model, given = Halved(), (torch.randn(3, 10, 4),)
    path = export_onnx(model, tmp_path / "m.onnx", given)
    assert [shape_of(value) for value in onnx.load(str(path)).graph.input] == [["batch", "length", 4]]
    assert np.isnan(run(path, x=torch.randn(2, 6, 4))["output"]).all()
    x = torch.randn(2, 11, 4)
    np.testing.assert_allclose(run(path, x=x)["output"], model(x).detach(), atol=1e-6)
    assert verify_onnx(model, path, given)


class Labelled(Halved):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


def test_integers_alone_are_the_lowest_in_a_file_where_the_code_goes_another_way(tmp_path: Path) -> None:
    model = Labelled()
    path = export_onnx(model, tmp_path / "m.onnx", (torch.randn(3, 10, 4),))
    assert (run(path, x=torch.randn(2, 6, 4))["output"] == torch.iinfo(torch.int64).min).all()
    x = torch.randn(2, 11, 4)
    np.testing.assert_array_equal(run(path, x=x)["output"], model(x))


class OfItsType(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if type(x) is Tensor else x


def test_a_module_whose_trace_computes_otherwise_than_the_module_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the graph of OfItsType does not compute what it computes itself"):
        export_onnx(OfItsType(), tmp_path / "m.onnx", (torch.randn(2, 4),))
    assert not any(tmp_path.iterdir())


def test_layers_of_a_module_that_is_no_graph_are_compared(tmp_path: Path) -> None:
    model, given = ConvNet(), (torch.randn(2, 3, 8, 8),)
    check = verify_onnx(model, export_onnx(model, tmp_path / "m.onnx", given), given, per_layer=True)
    assert check and check.layers


class Asked(nn.Module):
    """Queries that read a memory by its mask, whose batch is divided by that of the queries.

    With `labels`, which are for two examples and no others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(8, 8)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, labels: Tensor | None = None) -> Tensor:
        bias = ((1 - mask) * -1e4)[:, None].repeat_interleave(2, 0).view(x.shape[0], 2, -1, 7)
        q, k, v = (given.unflatten(2, (2, 4)).transpose(1, 2) for given in (x, memory, self.values(memory)))
        y = F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)
        return y if labels is None else y + torch.stack([*labels]).sum()


def _asked() -> tuple[Tensor, ...]:
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    return torch.randn(2, 5, 8), torch.randn(2, 7, 8), mask


@pytest.mark.slow
@fails_on_old_torch("the exporter does not find two batches to be one")
def test_inputs_have_one_batch_where_one_is_divided_by_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, given = Asked(), _asked()
    exported = Exported(model, tmp_path / "m.onnx", given)
    # Of the attempt without it.
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [shape_of(value)[0] for value in onnx.load(str(exported.path)).graph.input] == ["batch"] * 3
    assert exported.verify()


@pytest.mark.slow
@fails_on_old_torch("the exporter does not find two batches to be one")
def test_inputs_do_not_have_one_batch_where_it_would_be_fixed(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"inconsistencies were found: Eq\(.*is inconsistent"):
        export_onnx(Asked(), tmp_path / "m.onnx", (*_asked(), torch.randn(2)))
    assert not list(tmp_path.iterdir())


def test_conditions_on_sizes_that_cannot_be_solved_stop_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(conditions: object) -> None:
        raise NotImplementedError("The inequality, 14 - 14*(((x/2)//8)) < 0, cannot be solved")

    monkeypatch.setattr("torch.fx.experimental.symbolic_shapes.DimConstraints.solve", fail)
    exported = Exported(nn.Conv2d(1, 2, 3), tmp_path / "m.onnx", (torch.randn(2, 1, 8, 8),))
    assert [isinstance(size, str) for size in shape_of(onnx.load(exported.path).graph.input[0])] == [1, 0, 1, 1]


def test_inverse_real_fourier_transforms_run(tmp_path: Path) -> None:
    class Filters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = nn.ParameterList(torch.randn(8, 16) / 4 for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for kernel in self.kernels:
                length = 2 * x.shape[-1]
                product = torch.fft.rfft(x, n=length) * torch.fft.rfft(kernel, n=length)
                x = x + torch.tanh(torch.fft.irfft(product, n=length)[..., :16])
            return x

    module, x = Filters(), torch.randn(2, 8, 16)
    exported = Exported(module, tmp_path / "model.onnx", (x,))
    check = exported.verify()
    assert check, check.summary()
    # Shape inference gets the size of such a result wrong; a stated shape would be believed.
    graph = onnx.load(exported.path).graph
    made = {name for node in graph.node for name in node.output}
    stated = {value.name for value in graph.value_info if value.type.tensor_type.HasField("shape")}
    assert not made & stated


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_without_bias_get_none(dimensions: int, tmp_path: Path) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    model, x = nn.Sequential(kind(3, 5, 3, bias=False), kind(5, 2, 1)), torch.randn(2, 3, *[6] * dimensions)
    exported = Exported(model, tmp_path / "conv.onnx", (x,))
    plain, biased = (node for node in onnx.load(exported.path).graph.node if node.op_type == "Conv")
    assert len(plain.input) == 2 and len(biased.input) == 3
    assert exported.verify()


class TwoClips(nn.Module):
    """Clips one value twice, each time between bounds of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        low, high = (y.clamp(min=bound).clamp(max=bound + 1) for bound in (-0.5, 0.1))
        return low + high


@pytest.mark.slow
def test_two_clips_of_one_value_keep_their_bounds(tmp_path: Path) -> None:
    model, x = TwoClips(), torch.randn(3, 4)
    assert Exported(model, tmp_path / "clips.onnx", (x,)).verify()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("", "model.onnx"),
        ("body.layers", "body.layers.onnx"),
        ("/etc/passwd", "%2Fetc%2Fpasswd.onnx"),
        ("blocks./../x", "blocks.%2F..%2Fx.onnx"),
        ("a\\b\n", "a%5Cb%0A.onnx"),
    ],
)
def test_names_of_files_lead_to_no_other_directory(part: str, name: str) -> None:
    assert onnx_name(part) == name == Path(name).name


def test_long_paths_of_parts_have_files_of_their_own() -> None:
    names = {onnx_name("é" * 100 + end) for end in "ab"}
    assert len(names) == 2 and max(len(name.encode()) for name in names) < 255


def test_log_levels_are_what_they_were(caplog: pytest.LogCaptureFixture) -> None:
    exporter, other = logging.getLogger("torch.onnx"), logging.getLogger("a user's")
    before = exporter.level
    exporter.setLevel(logging.DEBUG)
    try:
        with pytest.raises(ValueError, match="wrong"), quiet():
            exporter.warning("skipped")
            exporter.error("failed")
            other.warning("mine")
            raise ValueError("wrong")
        assert exporter.level == logging.DEBUG
        assert caplog.messages == ["failed", "mine"]
    finally:
        exporter.setLevel(before)


def test_warnings_of_others_are_heard() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn_explicit("old", DeprecationWarning, "core.py", 1, module="torch.onnx.core")
            warnings.warn_explicit("kept", UserWarning, "torchless.py", 1, module="torchless")
    assert [str(warning.message) for warning in heard] == ["kept"]


class Scaled(nn.Module):
    """Takes heights that are a multiple of two; goes another way where a picture is wider than six."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        joined = torch.cat([self.up(self.down(x)), x]) * scale[:, None, None, None].repeat(2, 1, 1, 1)
        return joined * 2 if x.shape[3] > 6 else joined


def test_a_file_has_the_dimensions_and_limits_of_its_graph_by_name(tmp_path: Path) -> None:
    given = torch.randn(2, 3, 8, 4), torch.randn(2)
    gm = repl_fx.capture(Scaled(), given)
    exported = Exported(gm, tmp_path / "m.onnx", given)
    model = onnx.load(str(exported.path))
    assert [shape_of(value) for value in model.graph.input] == [["batch", 3, "height", "width"], ["batch"]]
    assert shape_of(model.graph.output[0])[1] == 3
    line = Scaled.forward.__code__.co_firstlineno
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert notes["repl_fx.height"] == f"a multiple of 2 (test_onnx_model.py, line {line + 1})"
    assert notes["repl_fx.width"].endswith(f"at most 6 (test_onnx_model.py, line {line + 2})")
    check = exported.verify()
    assert check, check.summary()
    assert {row.sizes for row in check.rows} == {"", "height 4, width 2", "height 10, width 6"}
    # Wider pictures go the other way, which the file does not have.
    (found,) = run(exported.path, x=torch.randn(2, 3, 8, 8), scale=given[1]).values()
    assert np.isnan(found).all()


def test_dimensions_that_are_to_stay_are_fixed_in_the_file(tmp_path: Path) -> None:
    given = torch.randn(2, 3, 8, 4), torch.randn(2)
    gm = repl_fx.capture(Scaled(), given, fixed=["height"])
    path = export_onnx(gm, tmp_path / "m.onnx", given)
    assert shape_of(onnx.load(str(path)).graph.input[0]) == ["batch", 3, 8, "width"]


def test_a_model_in_place_whose_layers_make_their_weights_by_the_mode_is_exported_as_in_evaluation(
    tmp_path: Path,
) -> None:
    x = tokens()
    model = repl_fx.transform(MlpNet(depth=3), (x,), surrogate="bottleneck").model.eval()
    spectral_norm(model.get_submodule("blocks.0.fc2"))
    repl_fx.export_onnx(model, tmp_path / "net.onnx", (x,))
    check = repl_fx.verify_onnx(model, tmp_path / "net.onnx", (x,))
    assert check, check.summary()
