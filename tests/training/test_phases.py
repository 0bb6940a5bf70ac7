"""Phases: what they note in checkpoints, and the checkpoints they begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from repl_fx.errors import BadInput
from repl_fx.training.phase_checkpoints import NOTE, phase_of
from repl_fx.training.phases import Phase
from repl_fx.training.run import CHECKPOINT, STATE, train_once
from repl_fx.training.safe_checkpoints import read_checkpoint
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
