"""A step of training: what it moves, its parts, and who is on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.benchmarking import training
from repl_fx.benchmarking.training import PARTS, Sizes, Trainer, mean_squares, timed_steps
from repl_fx.running.example_inputs import ExampleInputs
from repl_fx.running.timing import Timer

CPU = torch.device("cpu")
X = torch.randn(5, 4)
LOSS = mean_squares(ExampleInputs((X,)))


def _layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def _trainer(module: nn.Module, device: torch.device = CPU) -> Trainer:
    loss = mean_squares(ExampleInputs((X.to(device),)))
    trainer = Trainer(module, loss, device)
    trainer.load()
    trainer.step()
    return trainer


def test_a_step_trains_a_copy_and_is_timed_in_three_parts() -> None:
    model = _layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = _trainer(model)
    trained = trainer.module.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(value, before[name]) for name, value in trained.items())
    marks: list[int] = []
    trainer.step(lambda: marks.append(1))
    assert len(marks) == len(PARTS) + 1
    # Two moments for each of 67 parameters, and a step count for each of 4 tensors; kept: input, ReLU and output.
    assert Sizes.of(trainer) == Sizes(67, 4 * (2 * 67 + 4), 4 * (5 * 4 + 5 * 8 + 5 * 3), None)
    trainer.unload()
    assert all(p.grad is None for p in trainer.module.parameters()) and trainer.optimizer is None


def test_the_loss_takes_every_floating_output() -> None:
    @dataclass
    class Out:
        first: Tensor
        second: Tensor
        ids: Tensor

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            return Out(self.a(x), self.b(x).to(torch.bfloat16), x.argmax(-1))

    model = Two()
    made = model(X)
    expected = made.first.square().mean().double() + made.second.float().square().mean().double()
    torch.testing.assert_close(LOSS(model), expected)
    torch.autograd.backward(LOSS(model))
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_without_a_step_of_training_is_refused() -> None:
    with pytest.raises(repl_fx.BadInput, match="none of its outputs depends on a parameter"):
        LOSS(nn.ReLU())


def test_the_loss_keeps_its_inputs() -> None:
    x = X.clone()
    loss = mean_squares(ExampleInputs((x,)))
    loss(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)))
    assert torch.equal(x, X)


def _timed(monkeypatch: pytest.MonkeyPatch, fit: bool) -> tuple[list[dict[str, Any]], dict[str, Trainer], list[str]]:
    monkeypatch.setattr(training, "_fit", lambda sizes, device: fit)
    trainers = {name: Trainer(_layers(), LOSS, CPU) for name in ("good", "bad")}
    trainers["bad"].module[2] = nn.Linear(9, 3)  # type: ignore[operator]
    failed: list[str] = []

    def attempt(name: str, turn: Any) -> Any:
        try:
            return turn()
        except RuntimeError:
            failed.append(name)

    return list(timed_steps(trainers, Timer(CPU), 2, warm_up=1, attempt=attempt)), trainers, failed


@pytest.mark.parametrize("fit", [True, False])
def test_steps_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch, fit: bool) -> None:
    rounds, trainers, failed = _timed(monkeypatch, fit)
    assert [list(times) for times in rounds] == [["good"]] * 2 and failed == ["bad"]
    assert all(tuple(times["good"]) == PARTS and min(times["good"].values()) > 0 for times in rounds)
    # One that failed holds nothing, and none does where not all of them fit.
    assert (trainers["good"].optimizer is not None, trainers["bad"].optimizer) == (fit, None)


def test_what_a_cpu_has_always_fits() -> None:
    assert training._fit([Sizes(10**15, 0, 0, None)], CPU)


@pytest.mark.gpu
def test_the_peak_on_a_gpu_holds_the_state_and_what_is_kept() -> None:
    trainer = _trainer(_layers(), torch.device("cuda"))
    sizes = Sizes.of(trainer)
    assert sizes.peak_bytes is not None and sizes.peak_bytes >= sizes.optimizer_bytes + sizes.kept_bytes + 2 * 4 * 67
    assert all(one > 0 for one in Timer(torch.device("cuda"))(trainer.step))
    assert not training._fit([Sizes(10**12, 0, 0, 0)], torch.device("cuda"))
