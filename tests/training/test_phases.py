"""Phases: what they note in checkpoints, and the checkpoints they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from repl_fx.errors import BadInput
from repl_fx.training.module import optimizers_of
from repl_fx.training.phases import (
    CURRENT,
    NOTE,
    Phase,
    averaged_weights,
    carried_over,
    noted,
    phase_of,
    trained_weights,
)
from repl_fx.training.run import CHECKPOINT, STATE, train_once
from repl_fx.training.safe_checkpoints import read_checkpoint
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import Net, pictures
from tests.training.test_run import SHORT


class _Module(pl.LightningModule):
    """Has optimizers in a form of Lightning's."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.net, self.form = Net(), form

    def configure_optimizers(self) -> Any:
        one, other = (
            torch.optim.SGD(part.parameters(), 0.1, momentum=0.5) for part in (self.net.stem, self.net.blocks)
        )
        forms = {
            "one": one,
            "several": [one, other],
            "mapping": {"optimizer": one},
            "mappings": ({"optimizer": one}, {"optimizer": other}),
            "and schedules": ([one, other], []),
        }
        if self.form not in forms:
            raise RuntimeError(f"no form {self.form} without a trainer")
        return forms[self.form]


def _saved(place: Path, count: int) -> None:
    net = Net()
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    parts = [[f"net.{part}.{name}" for name, _ in getattr(net, part).named_parameters()] for part in ("stem", "blocks")]
    moments = [
        {"state": {0: {"momentum_buffer": torch.ones(())}}, "param_groups": [{"params": list(range(len(names)))}]}
        for names in parts
    ]
    note = {"phase": "original", "prefix": "net.", "parameters": parts[:count]}
    torch.save({NOTE: note, "state_dict": state, "optimizer_states": moments[:count], "lr_schedulers": []}, place)


@pytest.mark.parametrize(
    ("form", "count"), [("one", 1), ("several", 2), ("mapping", 1), ("mappings", 2), ("and schedules", 2)]
)
def test_optimizers_of_a_user_in_all_forms_are_carried_over(tmp_path: Path, form: str, count: int) -> None:
    place, module = tmp_path / "last.ckpt", _Module(form)
    _saved(place, count)
    weight = torch.load(place, weights_only=True)["state_dict"]["net.stem.weight"]
    Phase("rewritten", 2).begin(place, module, module.net)
    found = read_checkpoint(place)
    assert phase_of(found) == "rewritten" and len(found["optimizer_states"]) == count
    assert all(0 in optimizer["state"] for optimizer in found["optimizer_states"])
    assert torch.equal(found["state_dict"]["net.stem.weight"], weight)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    before = place.read_bytes()
    # A checkpoint of the phase itself is where the run goes on.
    Phase("rewritten", 2).begin(place, _Module(form), module.net)
    assert place.read_bytes() == before


def test_optimizers_that_need_a_run_are_a_line(tmp_path: Path) -> None:
    _saved(tmp_path / "last.ckpt", 1)
    module = _Module("none")
    with pytest.raises(BadInput, match="_Module has no optimizers before it trains, and a run with phases asks for"):
        Phase("rewritten", 2).begin(tmp_path / "last.ckpt", module, module.net)


def test_checkpoints_name_their_phase_and_the_fit_ends_with_it(tmp_path: Path) -> None:
    train_once(Net(), pictures(), SHORT, tmp_path, phase=Phase("original", 1))
    found = read_checkpoint(tmp_path / STATE / CHECKPOINT)
    assert phase_of(found) == "original" and found[NOTE]["prefix"] == "model."
    (names,) = found[NOTE]["parameters"]
    assert sorted(names) == sorted(f"model.{name}" for name, _ in Net().named_parameters())
    # The schedule is that of the whole run.
    assert found["global_step"] == 6 and found["lr_schedulers"][0]["lr_lambdas"][0]["steps"] == 18


class _Holder(nn.Module):
    """A model under a name, and a parameter beside it."""

    def __init__(self, *layers: str) -> None:
        super().__init__()
        self.model = nn.ModuleDict({name: nn.Linear(3, 3) for name in layers})
        self.temperature = nn.Parameter(torch.ones(()))


def _trained(name: Any, *layers: str) -> tuple[_Holder, dict[str, Any]]:
    """A holder that has taken three steps, and its checkpoint."""
    torch.manual_seed(0)
    holder = _Holder(*layers)
    made = optimizers_of(holder.parameters(), TrainConfig(optimizer=name, lr=0.1), 10)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(3):
        for parameter in holder.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        schedule.step()
    checkpoint = {
        "state_dict": holder.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "loops": {"place": 7},
        NOTE: noted("original", holder, holder.model, [optimizer]),
    }
    return holder, checkpoint


def _moments(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    (names,) = checkpoint[NOTE]["parameters"]
    (state,) = checkpoint["optimizer_states"]
    return {names[number]: moments for number, moments in state["state"].items()}


def _begun(checkpoint: dict[str, Any], holder: _Holder, **averages: Tensor) -> tuple[dict[str, Any], Any, Any]:
    made = optimizers_of(holder.parameters(), TrainConfig(lr=0.1), 10)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    note = noted("rewritten", holder, holder.model, [optimizer])
    begun = carried_over(checkpoint, note, holder.state_dict(), averages, [optimizer.state_dict()])
    return begun, optimizer, schedule


def test_kept_parameters_keep_their_moments_and_new_ones_have_none() -> None:
    before, checkpoint = _trained("adamw", "a", "b", "c")
    # Numbers change: another layer comes first, one goes, and one is new.
    after = _Holder("new", "c", "a")
    begun, optimizer, schedule = _begun(checkpoint, after)
    kept = {f"model.{layer}.{name}" for layer in "ac" for name in ("weight", "bias")} | {"temperature"}
    was, now = _moments(checkpoint), _moments(begun)
    assert now.keys() == kept < was.keys()
    for name in kept:
        assert all(torch.equal(was[name][key], now[name][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        assert torch.equal(begun["state_dict"][name], before.state_dict()[name])
    assert torch.equal(begun["state_dict"]["model.new.weight"], after.state_dict()["model.new.weight"])
    assert (phase_of(checkpoint), phase_of(begun), begun["loops"]) == ("original", "rewritten", {"place": 7})
    optimizer.load_state_dict(begun["optimizer_states"][0])
    schedule.load_state_dict(begun["lr_schedulers"][0])
    assert optimizer.state[after.model["a"].weight]["step"] == 3
    assert [group["lr"] for group in optimizer.param_groups] == checkpoint["lr_schedulers"][0]["_last_lr"]
    optimizer.step()
    schedule.step()
    assert schedule.last_epoch == 4


def test_momentum_goes_on_too() -> None:
    _, checkpoint = _trained("sgd", "a", "b")
    begun, *_ = _begun(checkpoint, _Holder("b"))
    assert torch.equal(
        _moments(begun)["model.b.weight"]["momentum_buffer"], _moments(checkpoint)["model.b.weight"]["momentum_buffer"]
    )


def test_groups_that_come_and_go_take_their_schedule_along() -> None:
    _, checkpoint = _trained("adamw", "a", "b")
    # Matrices are frozen: the group of norms and biases alone is left, with its own decay.
    after = _Holder("a", "b")
    for layer in after.model.values():
        layer.weight.requires_grad_(False)
    begun, optimizer, schedule = _begun(checkpoint, after)
    (group,) = begun["optimizer_states"][0]["param_groups"]
    assert group["weight_decay"] == 0 and group["lr"] == checkpoint["lr_schedulers"][0]["_last_lr"][1]
    assert len(begun["lr_schedulers"][0]["base_lrs"]) == 1
    optimizer.load_state_dict(begun["optimizer_states"][0])
    schedule.load_state_dict(begun["lr_schedulers"][0])
    schedule.step()
    back, optimizer, schedule = _begun(begun, _Holder("a", "b"))
    matrices, rest = back["optimizer_states"][0]["param_groups"]
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.05, 0.0) and matrices["lr"] == rest["lr"] < 0.1
    assert "model.a.weight" not in _moments(back) and "model.a.bias" in _moments(back)
    optimizer.load_state_dict(back["optimizer_states"][0])
    schedule.load_state_dict(back["lr_schedulers"][0])
    schedule.step()
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


def test_averages_go_on_beside_the_weights() -> None:
    before, checkpoint = _trained("adamw", "a")
    checkpoint[CURRENT] = before.state_dict()
    checkpoint["state_dict"] = {name: value + 1 for name, value in before.state_dict().items()}
    after = _Holder("a", "new", "other")
    begun, *_ = _begun(checkpoint, after, **{"model.other.bias": torch.full((3,), 9.0)})
    now, average = trained_weights(begun), averaged_weights(begun)
    assert average is not None and now.keys() == average.keys() == after.model.state_dict().keys()
    assert torch.equal(now["a.weight"] + 1, average["a.weight"])
    assert torch.equal(now["new.weight"], average["new.weight"])
    assert torch.equal(average["other.bias"], torch.full((3,), 9.0))
    assert not torch.equal(now["other.bias"], average["other.bias"])
    assert averaged_weights({**checkpoint, CURRENT: None}) is not None
    assert averaged_weights(_trained("adamw", "a")[1]) is None


def test_a_tensor_of_another_size_is_a_new_one() -> None:
    _, checkpoint = _trained("adamw", "a")
    after = _Holder("a")
    after.model["a"] = nn.Linear(3, 2)
    begun, *_ = _begun(checkpoint, after)
    assert begun["state_dict"]["model.a.bias"].shape == (2,)
    assert _moments(begun).keys() == {"temperature"}


def test_a_checkpoint_without_phases_is_a_line() -> None:
    with pytest.raises(BadInput, match="the checkpoint is of a run without phases"):
        phase_of({"state_dict": {}})
