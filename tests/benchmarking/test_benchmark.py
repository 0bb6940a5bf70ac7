"""A whole benchmark of small models: a row for each variant in each setting, measured or with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repl_fx
from repl_fx.benchmarking import benchmark as benchmarks
from repl_fx.benchmarking.benchmark import Settings, bench
from repl_fx.benchmarking.results import Benchmark
from repl_fx.benchmarking.training import Trainer
from tests.nets import MlpBlock, RawNet

X = torch.randn(2, 16)
BRIEF = Settings(rounds=2, warm_up=0, compiled=False, onnx=False)
SHORT = Settings(rounds=1, warm_up=0, compiled=False, onnx=False, inference=False)


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), *(MlpBlock(16) for _ in range(3)), nn.Linear(16, 4))


def _benchmark(model: nn.Module, settings: Settings, x: Any = X, **options: Any) -> Benchmark:
    result = repl_fx.transform(model, (x,), **options)
    return bench(result, settings)


@pytest.mark.slow
def test_every_variant_is_measured_in_every_setting() -> None:
    model = _net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    stages: list[str] = []
    result = repl_fx.transform(model, (X,), surrogate="bottleneck")
    measured = bench(result, BRIEF, progress=stages.append)
    assert [row.variant for row in measured.training] == ["original", "rewritten", "depth-pruned", "checkpointed"]
    assert [(row.batch, row.variant) for row in measured.inference] == [
        (batch, name) for batch in (1, 2) for name in ("original", "rewritten", "unfolded", "depth-pruned")
    ]
    assert all(row.reason is None and len(row.samples) == 2 and min(row.samples) > 0 for row in measured.rows)
    forms = {row.variant: row.form for row in measured.inference}
    assert list(forms.values()) == ["source", "folded graph", "in place", "folded graph"]
    sizes = [row.sizes for row in measured.training]
    parameters = [size.parameters for size in sizes if size is not None]
    assert parameters[0] == parameters[3] > parameters[1] > parameters[2]
    assert measured.settings["batch"] == 2 and measured.machine["torch"] == torch.__version__
    assert "measured in training alone" in measured.notes[0] and "train checkpointed" in stages
    # Nothing of the model and of the caller's randomness moved.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_inputs_have_the_batch_that_was_asked_for() -> None:
    seen: list[int] = []

    class Noted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                seen.append(len(x))
            out: Tensor = self.net(x)
            return out

    measured = _benchmark(Noted(), Settings(batch=5, batch_sizes=(3, 3, 1), **_fast()))
    assert [row.batch for row in measured.training] == [5] * 4
    assert list(dict.fromkeys(row.batch for row in measured.inference)) == [3, 1]
    assert {5, 3, 1} <= set(seen)


def _fast() -> dict[str, Any]:
    return {"rounds": 1, "warm_up": 0, "compiled": False, "onnx": False}


@pytest.mark.slow
def test_a_variant_that_cannot_be_made_or_run_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise repl_fx.PlanMismatch("identity cannot stand in for 2: a reason")

    def no_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("\nno C++ compiler\nfound")

    monkeypatch.setattr("repl_fx.benchmarking.model_variants.rewrite_again", refuse)
    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(benchmarks, "_LONGEST", 40)
    result = repl_fx.transform(_net(), (X,), surrogate="bottleneck")
    settings = Settings(rounds=1, warm_up=0, batch_sizes=(2,), onnx=False)
    measured = bench(result, settings)
    reasons = {(type(row).__name__, getattr(row, "runtime", ""), row.variant): row.reason for row in measured.rows}
    pruned = "identity cannot stand in for 2: a reason"
    assert reasons["TrainingRow", "", "depth-pruned"] == pruned
    assert reasons["InferenceRow", "eager", "depth-pruned"] == pruned
    assert reasons["InferenceRow", "compiled", "original"] == "RuntimeError: no C++ compiler"
    assert reasons["TrainingRow", "", "original"] is None and reasons["InferenceRow", "eager", "rewritten"] is None
    # The order of the variants is the same as ever.
    assert [row.variant for row in measured.training] == ["original", "rewritten", "depth-pruned", "checkpointed"]


@pytest.mark.slow
def test_a_variant_that_runs_out_of_memory_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trainer.step

    def step(self: Any, *args: Any) -> Tensor:
        if any("forward" in vars(module) for module in self.module.modules()):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    measured = _benchmark(_net(), SHORT)
    assert [row.reason for row in measured.training] == [None] * 3 + ["OutOfMemoryError: CUDA out of memory"]


@pytest.mark.slow
def test_a_batch_that_the_model_does_not_take_is_said() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out.view(2, 4)

    measured = _benchmark(Pairs(), Settings(training=False, batch_sizes=(2, 3), **_fast()))
    assert [row.reason is None for row in measured.inference] == [True] * 4 + [False] * 4
    with pytest.raises(repl_fx.BadInput, match=r"nothing could be measured: original: RuntimeError: .*invalid"):
        _benchmark(Pairs(), Settings(training=False, batch_sizes=(3,), **_fast()))


@pytest.mark.slow
def test_what_has_no_batch_runs_as_it_is() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, pictures: list[Tensor]) -> Tensor:
            out: Tensor = self.net(torch.cat(pictures))
            return out

    pictures = [torch.randn(2, 16), torch.randn(2, 16)]
    measured = _benchmark(Listed(), Settings(**_fast()), pictures)
    assert all(row.batch is None and row.throughput is None and row.samples for row in measured.rows)
    with pytest.raises(repl_fx.BadInput, match="no tensor with a batch, so that none has a batch of 4"):
        _benchmark(Listed(), Settings(batch=4, **_fast()), pictures)


@pytest.mark.slow
def test_a_model_without_blocks_that_are_modules_has_no_checkpoints() -> None:
    measured = _benchmark(RawNet(), SHORT, torch.randn(4, 8), surrogate="blend")
    assert [row.form for row in measured.training] == ["source", "graph", "graph", None]
    assert "none of its blocks is one module" in (measured.training[3].reason or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": "a"}, "rounds is 'a'; it must be a whole number, 1 or more"),
        ({"batch": 0}, "batch is 0; it must be a whole number, 1 or more"),
        ({"batch_sizes": (2, 0)}, "batch_sizes is 0; it must be a whole number, 1 or more"),
        ({"warm_up": -1}, "warm_up is -1; it must be a whole number, 0 or more"),
        ({"device": "nope"}, "device 'nope' cannot be timed; choose cpu or cuda"),
        ({"training": False, "inference": False}, "neither training nor inference"),
        ({"device": "meta"}, "device 'meta' cannot be timed; choose cpu or cuda"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(repl_fx.BadInput, match=message):
        Settings(**settings)


def test_a_device_that_is_not_here() -> None:
    with pytest.raises(repl_fx.BadInput, match="device 'cuda:x' cannot be used here"):
        _benchmark(_net(), Settings(device="cuda:x"))
