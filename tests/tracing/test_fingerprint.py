"""The text of a graph: another model has another, and the same model the same."""

from __future__ import annotations

import copy
from collections import UserDict
from pathlib import Path

import pytest
import torch
from torch import nn

import repl_fx
from repl_fx.sources import load_source
from repl_fx.tracing.fingerprint import fingerprint, lines_around, lines_of_graph

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

SCALE = 2.0


class Noise(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        # Added to what it is given.
        return x + self.scale * torch.rand_like(x) / SCALE


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.drop, self.noise = nn.LayerNorm(4, eps=1e-5), nn.Dropout(0.1), Noise(0.5)
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.noise(self.drop(self.norm(self.fc1(x))))
        y = F.gelu(y, approximate="none") - self.fc2(self.act(y)).softmax(-1)
        return y * torch.tensor([1.0, 2.0, 3.0, 4.0]) / 3.0


def model():
    return Net()


def example_inputs():
    return (torch.randn(2, 4),)
"""

CHANGES = [
    ("nn.ReLU()", "nn.SiLU()"),
    ('approximate="none"', 'approximate="tanh"'),
    ("eps=1e-5", "eps=1e-6"),
    ("nn.Dropout(0.1)", "nn.Dropout(0.2)"),
    ("nn.Dropout(0.1)", "nn.AlphaDropout(0.1)"),
    ("/ 3.0", "/ 3.5"),
    ("3.0, 4.0]", "3.0, 5.0]"),
    ("softmax(-1)", "softmax(0)"),
    ("y * torch.tensor", "torch.tensor"),
    ("self.fc2(self.act(y))", "self.act(self.fc2(y))"),
    ('F.gelu(y, approximate="none") - self.fc2(self.act(y)).softmax(-1)',
     'self.fc2(self.act(y)).softmax(-1) - F.gelu(y, approximate="none")'),
    ("Noise(0.5)", "Noise(0.25)"),
    ("return x + self.scale", "return x - self.scale"),
    ("SCALE = 2.0", "SCALE = 3.0"),
    ("nn.Linear(4, 4), nn.Linear(4, 4)", "nn.Linear(4, 4, bias=False), nn.Linear(4, 4)"),
]  # fmt: skip


def _lines(text: str, file: Path) -> list[str]:
    file.write_text(text)
    source = load_source(str(file))
    return lines_of_graph(repl_fx.capture(source.model, source.args))


def test_the_same_model_has_the_same_text_wherever_its_file_lies(tmp_path: Path) -> None:
    first = _lines(MODEL, tmp_path / "net.py")
    (tmp_path / "elsewhere").mkdir()
    again = _lines(MODEL.replace("    # Added to what it is given.\n", ""), tmp_path / "elsewhere" / "network.py")
    assert again == first
    assert fingerprint(first) == fingerprint(again)


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_another_model_has_another_text(tmp_path: Path, old: str, new: str) -> None:
    assert MODEL.count(old) == 1
    first, second = (_lines(text, tmp_path / "net.py") for text in (MODEL, MODEL.replace(old, new)))
    assert fingerprint(first) != fingerprint(second)


def test_values_of_weights_do_not_count_and_what_they_are_made_of_does() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GRUCell(8, 8)), torch.randn(2, 8)
    gm = repl_fx.capture(model, (x,))
    first = fingerprint(lines_of_graph(gm))
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean):
            assert isinstance(tensor, torch.Tensor)
            tensor.add_(1.0)
    assert fingerprint(lines_of_graph(repl_fx.capture(model, (x,)))) == first
    assert fingerprint(lines_of_graph(repl_fx.capture(model.eval(), (x,)))) == first
    double = repl_fx.capture(copy.deepcopy(model).double(), (x.double(),))
    assert fingerprint(lines_of_graph(double)) != first
    gm.register_buffer("more", torch.zeros(2))
    assert fingerprint(lines_of_graph(gm)) != first


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, dropout=0.5, num_layers=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]  # type: ignore[no-any-return]


def test_a_recurrent_layer_has_no_values_in_its_text() -> None:
    model, x = Remembers(), torch.randn(3, 2, 4)
    first = lines_of_graph(repl_fx.capture(model, (x,)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert lines_of_graph(repl_fx.capture(model, (x,))) == first
    assert any("dropout=0.5" in line for line in first)


class Counts(nn.Module):
    """Stays Python, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Sequential(nn.Linear(2, 2)), nn.Dropout(0.3)
        self.count, self.limit, self._scale = 0, (2, "rows"), 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.drop(self.inner(x)) * self._scale if self.count < self.limit[0] else x


def test_what_stays_python_is_told_by_its_code_and_not_by_its_state() -> None:
    model = Counts()
    lines = list(lines_around(model, ["inner"]))
    assert [line.partition(":")[0] for line in lines] == ["", "drop"]
    assert " code " in lines[0] and "_scale=0.5" in lines[0] and "limit=(2, 'rows')" in lines[0] and "p=0.3" in lines[1]
    model.count += 1
    assert list(lines_around(model, ["inner"])) == lines
    # What libraries note on a model, and no forward reads.
    model.accepts_loss_kwargs, model.name_or_path, model.is_parallelizable = False, "net", True  # type: ignore[assignment]
    assert list(lines_around(model, ["inner"])) == lines
    model.limit = (3, "rows")
    assert list(lines_around(model, ["inner"])) != lines
    assert len(list(lines_around(model, []))) == 4


def test_a_module_that_stands_at_a_second_place_is_told_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    lines = list(lines_around(model, []))
    model.append(model[1])
    assert list(lines_around(model, [])) == [*lines, "3: the module at 1"]


class Late(nn.Module):
    """Reads an attribute that may be set later, in a method that its forward names, and under a name that it makes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor * getattr(self, f"scale_{x.ndim}", 1.0)

    @property
    def factor(self) -> float:
        return getattr(self, "late", 1.0)


def test_attributes_that_a_forward_may_read_are_settings() -> None:
    model = Late()
    lines = list(lines_around(model, []))
    vars(model)["late"] = 2.0
    with_late = list(lines_around(model, []))
    assert with_late != lines
    vars(model)["scale_2"] = 2.0
    assert list(lines_around(model, [])) != with_late


def test_marks_on_layers_of_pytorch_are_settings_where_a_hook_of_the_users_reads_them() -> None:
    model = nn.Sequential(nn.Embedding(4, 2), nn.LayerNorm(2))
    lines = list(lines_around(model, [], as_set=True))
    # As the Trainer of transformers notes how much noise its hook adds to embeddings.
    vars(model[0])["noise"] = 5.0
    assert list(lines_around(model, [], as_set=True)) == lines
    with model[0].register_forward_hook(lambda layer, args, output: output + layer.noise):
        assert list(lines_around(model, [], as_set=True)) != lines
    vars(model[0])["max_norm"] = 1.0
    assert list(lines_around(model, [], as_set=True)) != lines


def test_long_tables_of_fractions_count_by_their_size_alone() -> None:
    def lines(table: torch.Tensor) -> list[str]:
        class Adds(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.fc = table, nn.Linear(2, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y: torch.Tensor = self.fc(x)
                return y + self.table.sum()

        return lines_of_graph(repl_fx.capture(Adds(), (torch.randn(3, 2),)))

    table = torch.arange(100.0).sin()
    assert lines(table) == lines(table + 1e-7) == lines(table + 1)
    assert lines(table) != lines(table[:50])
    assert lines(torch.arange(100)) != lines(torch.arange(1, 101))
    assert lines(torch.tensor([0.5, 0.25])) == lines(torch.tensor([0.5, 0.25 + 1e-7]))
    assert lines(torch.tensor([0.5, 0.25])) != lines(torch.tensor([0.5, 0.26]))


def test_a_class_whose_file_was_read_again_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    first = load_source(str(tmp_path / "net.py"))
    # The classes of the first are no longer those of the file that Python knows.
    load_source(str(tmp_path / "net.py"))
    lines = lines_of_graph(repl_fx.capture(first.model, first.args))
    assert any(line.startswith("noise: Noise code ") for line in lines)


class _Lost(UserDict[str, int]):
    def __getitem__(self, key: str) -> int:
        raise KeyError(f"prefix.{key}")


def test_a_mapping_without_the_keys_that_it_gives_is_named_by_its_class() -> None:
    layer = nn.Linear(2, 2)
    vars(layer)["offloaded"] = _Lost(weight=1)
    assert any("_Lost data={'weight': 1}" in line for line in lines_around(layer, ()))
