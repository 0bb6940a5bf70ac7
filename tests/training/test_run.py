"""Runs: they learn, go on where they were stopped, and end in one line where they cannot."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.errors import BadInput
from repl_fx.training.data.data_set import Data, Tensors
from repl_fx.training.run import (
    CHECKPOINT,
    CONFIG,
    DATA,
    LOGS,
    RESULT,
    STATE,
    evaluate,
    finished,
    settings_of,
    train_once,
)
from repl_fx.training.safe_checkpoints import Checkpoints, read_checkpoint
from repl_fx.training.train_config import TrainConfig, read_config
from tests.training.runs import Net, PixelNet, Spots, bare, pictures, pixel_net, rewritten, scenes, spots, spots_net

SHORT = TrainConfig(epochs=3, batch_size=8, save_every=2, lr=0.02, device="cpu", log_every=2)
ROOT = Path(__file__).parents[2]


def test_a_run_learns_and_leaves_its_figures(tmp_path: Path) -> None:
    model = rewritten()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = train_once(model, pictures(), SHORT.changed(epochs=12, augment=False, tensorboard=True), tmp_path)
    assert made.figures["accuracy"] > 0.8
    assert made.steps == 12 * 6
    assert made.resumed is None
    assert not torch.equal(before["stem.weight"], model.state_dict()["stem.weight"])
    assert {file.name for file in (tmp_path / STATE).iterdir()} == {CHECKPOINT, CONFIG, DATA, LOGS, RESULT}
    assert finished(tmp_path, "") == made
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert made.inputs_per_second is not None and made.inputs_per_second > 0
    assert settings_of(tmp_path).epochs == 12
    logs = tmp_path / STATE / LOGS / "from_step_0"
    assert "inputs_per_second" in (logs / "metrics.csv").read_text()
    assert any(b"inputs_per_second" in events.read_bytes() for events in logs.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("steps", [8, 6, 3])
def test_a_run_may_end_by_its_steps(tmp_path: Path, steps: int) -> None:
    model, config = rewritten(), SHORT.changed(steps=steps, lr=0.01)
    made = train_once(model, pictures(), config, tmp_path)
    assert made.steps == steps and made.figures.keys() == {"loss", "accuracy"}
    saved = read_checkpoint(tmp_path / STATE / CHECKPOINT)
    assert saved["global_step"] == steps
    # The rate has come down to zero by then: the schedule is one of as many steps.
    assert saved["lr_schedulers"][0]["_last_lr"][0] == 0
    again = train_once(rewritten(), pictures(), config, tmp_path, resume=True)
    assert again.figures == made.figures
    with pytest.raises(repl_fx.BadInput, match="replace_at and restore_at are counted in epochs; give epochs"):
        config.changed(replace_at=1, epochs=3)


def test_a_run_learns_to_segment(tmp_path: Path) -> None:
    # A colour of any shape tells it from the ground; which of the two shapes is harder.
    figures = train_once(PixelNet(), scenes(), SHORT.changed(epochs=6), tmp_path).figures
    assert set(figures) == {"loss", "mean_iou", "pixel_accuracy"}
    # Ground alone gives a third of its share.
    assert figures["mean_iou"] > 0.45 and figures["pixel_accuracy"] > 0.8


@pytest.mark.slow
def test_a_run_learns_to_detect(tmp_path: Path) -> None:
    figures = train_once(Spots(), spots(), SHORT.changed(epochs=6, lr=0.04, augment=False), tmp_path).figures
    assert set(figures) == {"map", "map_50"} and figures["map_50"] > 0.3


def test_models_for_another_task_are_a_line(tmp_path: Path) -> None:
    with pytest.raises(repl_fx.BadInput, match=r"PixelNet returns 2 logits, and shapes has 3 classes"):
        train_once(PixelNet(classes=2), scenes(), SHORT, tmp_path)
    with pytest.raises(repl_fx.BadInput, match=r"Flat returns logits of shape \(16, 3\); wanted is \(batch, classes"):
        train_once(_Flat(), scenes(16, 16), SHORT, tmp_path)

    with pytest.raises(repl_fx.BadInput, match="PixelNet does not take inputs of spots, which are 3x8x8: "):
        train_once(PixelNet(), spots(), SHORT, tmp_path)
    with pytest.raises(repl_fx.BadInput, match="own losses, without smoothing; leave out --label-smoothing"):
        train_once(Spots(), spots(), SHORT.changed(label_smoothing=0.1), tmp_path)


class _Flat(PixelNet):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)["out"].mean((2, 3))


_KILLED = """
import os, sys
from pathlib import Path
import torch
from repl_fx.training.run import train_once
from repl_fx.training.train_config import TrainConfig, read_config
from repl_fx.training.safe_checkpoints import Checkpoints
from tests.training import runs
import signal
torch.set_num_threads(1)
directory, batch, model, data = Path(sys.argv[1]), int(sys.argv[2]), *(getattr(runs, name) for name in sys.argv[3:])
own, count = Checkpoints.on_train_batch_end, 0
def on_train_batch_end(self, *args):
    global count
    own(self, *args)
    count += 1
    if count == batch:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.on_train_batch_end = on_train_batch_end
train_once(model(), data(), read_config(directory / "config.yaml", TrainConfig()), directory)
"""


class _Killed(BaseException):
    """Ends a run as a kill does: nothing is written on the way."""


Make = Callable[..., nn.Module]
Samples = Callable[[], Data]


def _kill_process(make: Make, data: Samples, directory: Path, batch: int) -> None:
    """Train in a process of its own, which is killed behind a batch."""
    command = [sys.executable, "-c", _KILLED, str(directory), str(batch), make.__name__, data.__name__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL


def _kill_here(make: Make, data: Samples, directory: Path, batch: int) -> None:
    """End a run in this process at the same place."""
    own, count = Checkpoints.on_train_batch_end, 0

    def on_train_batch_end(self: Checkpoints, *args: Any) -> None:
        nonlocal count
        own(self, *args)
        count += 1
        if count == batch:
            raise _Killed

    with patch.object(Checkpoints, "on_train_batch_end", on_train_batch_end), pytest.raises(_Killed):
        train_once(make(), data(), read_config(directory / "config.yaml", TrainConfig()), directory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "batch", "make", "data", "kill"),
    [
        ({}, 9, rewritten, pictures, _kill_process),
        ({"accumulate": 2, "mixup": 0.3, "ema": 0.9, "optimizer": "sgd"}, 7, rewritten, pictures, _kill_here),
        ({}, 7, pixel_net, scenes, _kill_here),
        ({"epochs": 2}, 8, spots_net, spots, _kill_here),
    ],
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path,
    settings: dict[str, Any],
    batch: int,
    make: Make,
    data: Samples,
    kill: Callable[[Make, Samples, Path, int], None],
) -> None:
    config = SHORT.changed(**settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killed.mkdir()
    (killed / "config.yaml").write_text(config.to_yaml())
    expected = make()
    figures = train_once(expected, data(), config, whole)
    kill(make, data, killed, batch)
    model = make(seed=1)
    made = train_once(model, data(), settings_of(killed), killed, resume=True)
    again = train_once(make(seed=2), data(), settings_of(killed), killed, resume=True)
    assert again.figures == made.figures and again.resumed == made.steps
    assert made.resumed is not None and 0 < made.resumed < made.steps
    assert made.figures == figures.figures
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())


def test_what_does_not_fit_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures()
    with pytest.raises(repl_fx.BadInput, match="Net does not take inputs of bright, which are 1x3x3: "):
        small = Tensors(torch.zeros(9, 1, 3, 3, dtype=torch.uint8), torch.zeros(9, dtype=torch.long))
        train_once(Net(), dataclasses.replace(data, shape=(1, 3, 3), train=small, test=small), SHORT, tmp_path)
    with pytest.raises(repl_fx.BadInput, match="Net returns 2 logits, and bright has 3 classes"):
        train_once(Net(classes=2), data, SHORT, tmp_path)
    with pytest.raises(repl_fx.BadInput, match=r"has no train_state/last\.ckpt to go on from"):
        train_once(Net(), data, SHORT, tmp_path / "none", resume=True)
    with pytest.raises(repl_fx.BadInput, match="tpu is no device to train on"):
        train_once(Net(), data, SHORT.changed(device="tpu"), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(repl_fx.BadInput, match="needs the library tensorboardX"):
        patch.setattr("repl_fx.training.run.find_spec", lambda name: None)
        train_once(Net(), data, SHORT.changed(tensorboard=True), tmp_path)
    with pytest.raises(repl_fx.BadInput, match="48 samples do not fill a batch of 64"):
        train_once(Net(), data, SHORT.changed(batch_size=64), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(repl_fx.OutputError, match="cannot be written"):
        train_once(Net(), data, SHORT, tmp_path / "file")


def test_a_run_goes_on_with_its_own_rows_alone(tmp_path: Path) -> None:
    data = pictures()
    assert isinstance(data.train, Tensors)
    train_once(Net(), data, SHORT.changed(epochs=1), tmp_path)
    config = settings_of(tmp_path)
    rows = data.train.main.clone()
    rows[5, 0, 0, 0] += 1
    targets = data.train.targets.roll(1)
    for other in (Tensors(rows, data.train.targets), Tensors(data.train.inputs, targets)):
        with pytest.raises(repl_fx.BadInput, match="bright has other samples, or another order, than when the run in "):
            train_once(Net(), dataclasses.replace(data, train=other), config, tmp_path, resume=True)
    assert train_once(Net(), pictures(), config, tmp_path, resume=True).resumed
    # A run of before its data were noted goes on.
    (tmp_path / STATE / DATA).unlink()
    assert train_once(Net(), dataclasses.replace(data, train=Tensors(rows, targets)), config, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_a_line(tmp_path: Path) -> None:
    train_once(Net(), pictures(), SHORT.changed(epochs=1), tmp_path)
    file = tmp_path / STATE / CHECKPOINT
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(repl_fx.BadInput, match=r"the checkpoint .* cannot be read"):
        train_once(Net(), pictures(), SHORT, tmp_path, resume=True)


class _Broken(Net):
    """Gives no numbers from some batch on."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (float("nan") if self.calls > 4 else 1.0)


def test_a_loss_that_is_no_number_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    with pytest.raises(repl_fx.BadInput, match=r"the loss is nan at step 5; .*last.ckpt is the last that is good"):
        train_once(_Broken(), pictures(), SHORT, tmp_path)
    found = torch.load(tmp_path / STATE / CHECKPOINT, weights_only=True)
    assert found["global_step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in found["state_dict"].values())


class _Modes(Net):
    """Notes the modes in which it runs with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.modes |= {module.training for module in self.modules()}
        return super().forward(x)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(tmp_path: Path) -> None:
    model = _Modes().eval()
    train_once(model, pictures(), SHORT.changed(epochs=1), tmp_path)
    assert model.modes == {True}


class _Interrupted(Net):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.blocks.training:
            raise KeyboardInterrupt
        return super().forward(x)


def test_an_interrupt_reaches_the_caller(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_once(_Interrupted(), pictures(), SHORT, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_figures_are_those_of_all_held_out_inputs() -> None:
    torch.manual_seed(0)
    model, data = Net(), pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, data, SHORT)
    assert isinstance(data.test, Tensors)
    with torch.no_grad():
        logits = model.eval()((data.test.main.float() / 255 - 0.3) / 0.3)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == data.test.targets).float().mean()))
    expected = torch.nn.functional.cross_entropy(logits, data.test.targets)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_without_targets_figures_are_against_the_original() -> None:
    torch.manual_seed(0)
    teacher, model = Net(), Net()
    teacher.blocks[1].eval()
    assert evaluate(teacher, bare(), SHORT, teacher)["accuracy_to_original"] == 1
    # Its parameters may be those of a model that is trained next.
    assert teacher.training and not teacher.blocks[1].training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    found, data = evaluate(model, bare(), SHORT, teacher), bare()
    assert isinstance(data.test, Tensors)
    inputs = (data.test.main.float() / 255 - 0.3) / 0.3
    with torch.no_grad():
        same = (model.eval()(inputs).argmax(1) == teacher.eval()(inputs).argmax(1)).float().mean()
    assert found.keys() == {"loss_to_original", "accuracy_to_original"}
    assert found["accuracy_to_original"] == pytest.approx(float(same)) and same < 1
    with pytest.raises(BadInput, match="bright has no targets; learn from the original: repl-fx heal"):
        evaluate(model, bare(), SHORT)
