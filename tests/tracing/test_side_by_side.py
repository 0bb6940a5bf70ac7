"""SideBySide of graphs: what is compared on shapes alone, and what is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.untouched import outcome_of
from repl_fx.tracing import side_by_side
from repl_fx.tracing.capture import capture
from repl_fx.tracing.side_by_side import SideBySide, products_of


class Halves(nn.Module):
    """A layer whose result has another sign, or shape, for some lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        if x.shape[1] == 7:
            return -y
        return y[:, :1] if x.shape[1] == 9 else y


class Longer(Halves):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y if x.shape[1] < 12 else y @ y


@pytest.mark.parametrize(
    ("length", "expected", "computed"),
    [(5, (True, True), 0), (7, (True, False), 2), (9, (True, False), 0), (12, (False, False), 0)],
    ids=["the same operators", "others", "another shape", "the model stops"],
)
@pytest.mark.parametrize("large", [True, False])
def test_values_are_computed_where_shapes_leave_it_open(
    length: int, expected: tuple[bool, bool], computed: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: nn.Module = Longer() if length == 12 else Halves()
    gm = capture(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 5, 4),))
    gm.get_submodule("0").load_state_dict(model.get_submodule("fc").state_dict())
    gm.get_submodule("0")._parameters.update(model.get_submodule("fc")._parameters)
    runs: list[bool] = []

    def counted(module: nn.Module, inputs: ExampleInputs, training: bool, **within: object) -> object:
        runs.append(training)
        return outcome_of(module, inputs, training, **within)  # type: ignore[arg-type]

    monkeypatch.setattr(side_by_side, "outcome_of", counted)
    monkeypatch.setattr(side_by_side, "_PER_NODE", -1 if large else 1 << 40)
    assert SideBySide(model, gm).compare(gm, ExampleInputs((torch.randn(2, length, 4),))) == expected
    assert len(runs) == computed if large else runs


def test_the_products_of_a_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5))
    gm = capture(model, (torch.randn(2, 3, 8, 8),))
    assert products_of(gm) == 4 * 2 * 36 * 8 * 27 + 2 * 288 * 5


def test_the_products_with_weights_the_other_way_round() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 7))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    assert products_of(capture(Turned(), (torch.randn(3, 5),))) == 3 * 5 * 7
