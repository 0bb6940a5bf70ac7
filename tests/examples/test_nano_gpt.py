"""A GPT in the habit of nanoGPT goes all the way: captured, cut to a budget, exported, and under each kernel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import repl_fx
from repl_fx.costs.counted import measure_costs
from repl_fx.sources import load_source
from tests.exporting import Exported

EXAMPLE = str(Path(__file__).resolve().parents[2] / "examples" / "nano_gpt.py")


@pytest.fixture(scope="module")
def result() -> repl_fx.TransformResult:
    source = load_source(EXAMPLE)
    return repl_fx.transform(source.model, source.args, budget={"flops": 0.75, "memory": 0.8})


@pytest.mark.slow
def test_costs_are_known_and_under_the_budget(result: Any) -> None:
    before, after = measure_costs(result.captured, result.args), measure_costs(result.graph_module, result.args)
    assert before == measure_costs(result.captured_parts.source, result.args) and before.unknown is None
    assert before.flops and before.activation_bytes and after.flops and after.activation_bytes
    assert after.flops <= 0.75 * before.flops and after.activation_bytes <= 0.8 * before.activation_bytes


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_every_form_runs_under_each_kernel(result: Any, backend: SDPBackend) -> None:
    model, folded = result.model, repl_fx.fold(result.graph_module)
    with sdpa_kernel(backend):
        for training in (True, False):
            graph, source = result.captured.train(training), result.captured_parts.source.train(training)
            assert all(map(torch.equal, graph(*result.args), source(*result.args)))
            made = result.graph_module.train(training)(*result.args)
            assert all(map(torch.equal, model.train(training)(*result.args), made))
        for one, other in zip(folded(*result.args), made, strict=True):
            torch.testing.assert_close(one, other)
        made[1].backward()


def test_it_generates(result: Any) -> None:
    ids = result.args[0][:1, :3]
    made = result.model.generate(ids, 4)
    assert made.shape == (1, 7) and torch.equal(made[:, :3], ids)


@pytest.mark.parametrize("form", ["captured", "graph_module", "model"])
def test_it_runs_on_the_meta_device(result: Any, form: str) -> None:
    module: nn.Module = copy.deepcopy(getattr(result, form)).to("meta")
    logits, loss = module(*(given.to("meta") for given in result.args))
    assert isinstance(logits, Tensor) and logits.is_meta and logits.shape == (2, 32, 256)
    loss.backward()


@pytest.mark.slow
def test_it_is_exported(result: Any, tmp_path: Path) -> None:
    folded = repl_fx.fold(result.graph_module)
    assert Exported(folded, tmp_path / "gpt.onnx", result.args).verify()
