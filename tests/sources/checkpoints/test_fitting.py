"""Weights go into a model strictly by name, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from repl_fx.errors import BadInput
from repl_fx.sources.checkpoints.fitting import load_weights_, with_weights
from tests.nets import ConvNet, MlpNet

State = dict[str, Any]


class Tied(nn.Module):
    """An embedding whose weight is the head's too, and a table that the code makes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def _values(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def _changed(model: nn.Module) -> nn.Module:
    """A model of the same names with other values in all tensors."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor += 1
    return other


def test_a_copy_gets_the_weights_and_the_model_shares_nothing_with_it() -> None:
    model = ConvNet(3)
    before, trained = _values(model), _changed(model).state_dict()
    found = with_weights(model, trained)
    assert _same(found, trained) and _same(model, before)
    given = {tensor.data_ptr() for state in (model.state_dict(), trained) for tensor in state.values()}
    assert not given & {tensor.data_ptr() for tensor in found.state_dict().values()}
    assert type(found) is ConvNet and found is not model


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.rows = iter("ab" for _ in range(2))  # type: ignore[assignment]
    with pytest.raises(BadInput, match=r"Linear cannot be copied \(TypeError: .*leave weights= out"):
        with_weights(model, nn.Linear(2, 2).state_dict())


def test_notes_say_where_weights_are_from_and_in_which_precision(tmp_path: Path) -> None:
    state = MlpNet().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    model = MlpNet()
    assert load_weights_(model, tmp_path / "weights.safetensors") == (
        f"weights are those of {tmp_path / 'weights.safetensors'}, {len(state)} tensors",
    )
    assert _same(model, state)
    notes = load_weights_(model, {name: t.to(torch.bfloat16) for name, t in state.items()})
    assert notes[1] == f"{len(state)} of these are bfloat16 there and float32 here, as the model is built"
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, state["head.weight"].to(torch.bfloat16).float())


def _without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda s: _without(s, "head.bias"), "1 key of MlpNet is missing in it (head.bias)"),
        (
            lambda s: _without(s, *list(s)[:5]),
            "5 keys of MlpNet are missing in it (embed.weight, embed.bias, blocks.0.norm.weight and 2 more)",
        ),
        (lambda s: {**s, "more": torch.ones(1)}, "1 key in it is not in MlpNet (more)"),
        (
            lambda s: {**s, "head.bias": torch.ones(3), "head.weight": torch.ones(())},
            "2 keys are of another shape (head.weight a number there and 10x16 here, head.bias 3 there and 10 here)",
        ),
        (
            lambda s: _without({**s, "more": torch.ones(1), "head.bias": torch.ones(3)}, "head.weight"),
            "1 key of MlpNet is missing in it (head.weight); 1 key in it is not in MlpNet (more); "
            "1 key is of another shape (head.bias 3 there and 10 here)",
        ),
        (lambda s: {"x": torch.ones(1)}, "16 keys of MlpNet are missing in it"),
    ],
)
def test_what_does_not_fit_is_one_line(edit: Callable[[State], State], line: str) -> None:
    model = MlpNet(depth=2, width=16)
    before = _values(model)
    with pytest.raises(BadInput) as caught:
        with_weights(model, edit(_changed(model).state_dict()))
    assert str(caught.value).startswith("the given state does not fit MlpNet: ") and line in str(caught.value)
    assert str(caught.value).endswith("; build the model that it is the checkpoint of, or rename its keys")
    assert _same(model, before)


def test_a_tied_weight_is_given_under_one_of_its_names(tmp_path: Path) -> None:
    trained = _changed(Tied())
    weight = trained.get_parameter("embed.weight")
    save_model(trained, str(tmp_path / "weights.safetensors"))
    assert len(load_file(tmp_path / "weights.safetensors")) == 1
    for state in ({"head.weight": weight}, {"embed.weight": weight}):
        assert _same(with_weights(Tied(), state), trained.state_dict())
    found = with_weights(Tied(), tmp_path / "weights.safetensors")
    assert found.get_parameter("head.weight") is found.get_parameter("embed.weight") and _same(
        found, trained.state_dict()
    )


def test_several_values_for_a_tied_weight_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"embed\.weight and head\.weight are one tensor in Tied and differ in the given"
    ):
        with_weights(Tied(), {"embed.weight": torch.ones(5, 4), "head.weight": torch.zeros(5, 4)})


def test_a_table_that_the_model_computes_may_be_there_as_it_is() -> None:
    state = {"embed.weight": torch.ones(5, 4), "table": torch.arange(4.0)}
    assert torch.equal(with_weights(Tied(), state).get_parameter("embed.weight"), state["embed.weight"])
    with pytest.raises(BadInput, match=r"1 key in it is not in Tied \(table\)"):
        with_weights(Tied(), {**state, "table": torch.ones(4)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_other_kinds_of_numbers_are_refused(dtype: torch.dtype) -> None:
    model = MlpNet()
    state = {**model.state_dict(), "head.bias": torch.zeros(10).to(dtype)}
    with pytest.raises(BadInput, match=r"head.bias is \w+ in the given state and float32 in MlpNet.*not quantised"):
        with_weights(model, state)


def test_values_that_are_no_plain_tensors_are_refused() -> None:
    class Sharded(Tensor):
        pass

    model = nn.Linear(2, 2, bias=False)
    for value, words in ((torch.ones(2, 2).as_subclass(Sharded), "Sharded"), ([1.0], "list")):
        with pytest.raises(BadInput, match=f"weight of the given state is of class {words}, no plain tensor"):
            with_weights(model, {"weight": value, "more": torch.ones(1)})


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(BadInput, match=r"Linear has tensors on the meta device, without values: weight and 1 more"):
        with_weights(model, nn.Linear(2, 2).state_dict())


def test_layers_read_the_names_of_their_older_versions() -> None:
    # By the hook of the layer itself.
    def normed() -> nn.Module:
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))

    old, norm = normed().state_dict(), "0.parametrizations.weight.original"
    renamed = {"0.bias": old["0.bias"], "0.weight_g": old[f"{norm}0"] + 1, "0.weight_v": old[f"{norm}1"]}
    found = with_weights(normed(), renamed).state_dict()
    assert torch.equal(found[f"{norm}0"], renamed["0.weight_g"])


def test_a_model_that_refuses_its_state_is_quoted() -> None:
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *args: Any) -> None:
            raise ValueError("not on Sundays")

    with pytest.raises(BadInput, match="the given state cannot be loaded into Picky: not on Sundays"):
        with_weights(Picky(1, 1), nn.Linear(1, 1).state_dict())
