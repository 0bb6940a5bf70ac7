"""Callbacks of a run: shared syntheses, speed and memory."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from rich.console import Console
from torch import nn

import repl_fx
from repl_fx.display import progress
from repl_fx.surrogates.shared.synthesis import Synthesis
from repl_fx.training import run
from repl_fx.training.callbacks import SharedSyntheses, Speed, ToldSteps
from repl_fx.training.run import train_once
from repl_fx.training.safe_checkpoints import WholeCheckpoints
from repl_fx.training.train_config import TrainConfig
from tests.training.runs import pictures, rewritten


def test_accumulated_batches_share_their_syntheses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"count": 0}
    own = Synthesis._made_of

    def counted(self: Synthesis, weights: Any) -> Any:
        made["count"] += self.training
        return own(self, weights)

    monkeypatch.setattr(Synthesis, "_made_of", counted)
    counts = []
    for batches in (1, 3):
        made["count"] = 0
        train_once(
            rewritten(), pictures(), TrainConfig(epochs=1, accumulate=batches, batch_size=8, device="cpu"), tmp_path
        )
        counts.append(made["count"])
    assert counts[1] < counts[0] - 3


def test_shared_syntheses_in_half_precision_are_those_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning takes it on GPUs alone; the scaling of losses is the same here.
    def scaled(config: Any, processes: Any) -> dict[str, Any]:
        return {"devices": 1, "plugins": [WholeCheckpoints(), MixedPrecision("16-mixed", "cpu")]}

    monkeypatch.setattr(run, "trainer_settings", scaled)
    monkeypatch.setattr(run, "PRECISIONS", {"float32": None})
    config = TrainConfig(epochs=12, accumulate=2, batch_size=8, device="cpu", optimizer="sgd", lr=0.1)
    trained = []
    for shared in (SharedSyntheses, pl.Callback):
        monkeypatch.setattr(run, "SharedSyntheses", shared)
        model = rewritten()
        repl_fx.train(model, pictures(), config=config)
        trained.append(model.state_dict())
    assert not torch.equal(trained[0]["stem.weight"], rewritten().state_dict()["stem.weight"])
    torch.testing.assert_close(trained[0], trained[1], atol=1e-3, rtol=1e-3)


def test_speed_counts_inputs_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    module: Any = nn.Module()
    module.log_dict, module.device = (lambda found, **_: logged.append(found)), torch.device("cpu")
    now = iter([0.0, 10.0, 14.0, 20.0, 30.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    speed = Speed(2)
    trainer: Any = SimpleNamespace(is_last_batch=False, world_size=2)
    speed.on_train_epoch_start(trainer, module)
    for number in range(2):
        trainer.global_step = number + 1
        speed.on_train_batch_end(trainer, module, None, (torch.zeros(8), None), number)
    # Of two batches of two processes, since the epoch began.
    assert logged[0]["inputs_per_second"] == pytest.approx(2 * 16 / 4.0)
    trainer.is_last_batch, trainer.global_step = True, 3
    speed.on_train_batch_end(trainer, module, None, (torch.zeros(8), None), 2)
    assert logged[1]["inputs_per_second"] == pytest.approx(2 * 8 / 6.0)
    assert speed.rates == [pytest.approx(2 * 24 / 10.0)]
    assert logged[0]["memory_mib"] > 10


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.zeros(8, 3), torch.zeros(8)), 8),
        ([torch.zeros(8, 3), torch.zeros(8)], 8),
        (([torch.zeros(3, 5, 5), torch.zeros(3, 4, 6)], [{}, {}]), 2),
        ({"input_ids": torch.zeros(6, 2)}, 6),
        (({"x": torch.zeros(5)}, torch.zeros(5)), 5),
        (torch.zeros(()), 1),
        (None, 1),
    ],
)
def test_inputs_of_any_batch_are_counted(batch: Any, count: int) -> None:
    logged: list[dict[str, float]] = []
    module: Any = nn.Module()
    module.log_dict, module.device = (lambda found, **_: logged.append(found)), torch.device("cpu")
    speed = Speed(2)
    trainer: Any = SimpleNamespace(is_last_batch=False, global_step=1, world_size=1)
    speed.on_train_batch_end(trainer, module, None, batch, 0)
    assert speed._seen == count and not logged
    trainer.global_step = 2
    speed.on_train_batch_end(trainer, module, None, batch, 1)
    # A second batch of one step is counted with the next.
    speed.on_train_batch_end(trainer, module, None, batch, 2)
    assert speed._seen == count and len(logged) == 1


def test_steps_of_training_stay_on_one_line_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setenv("REPL_FX_PROGRESS", "1")
    monkeypatch.setattr(
        progress, "Console", lambda **given: Console(file=written, force_terminal=True, width=80, markup=False)
    )
    figures = {f"figure_with_a_long_name_{number}": torch.tensor(0.123456) for number in range(6)}
    trainer: Any = SimpleNamespace(
        callback_metrics={**figures, "loss": torch.tensor(0.5)}, current_epoch=1, max_epochs=3, num_training_batches=20
    )
    module: Any = nn.Module()

    @progress.shown("train")
    def run() -> None:
        for batch in range(20):
            ToldSteps(5).on_train_batch_end(trainer, module, None, None, batch)
        ToldSteps(5).on_train_epoch_end(trainer, module)

    run()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue()).replace("\r", "\n").splitlines()
    assert any("epoch 2/3, figure_with_a_long_name_0 0.1" in line and "… " in line for line in lines)
    assert max(map(len, lines)) <= 80
    # The bar is taken back once, at its end: no line has wrapped.
    assert written.getvalue().count("\x1b[1A") == 1
