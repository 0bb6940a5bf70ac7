"""The models in examples/: each builds, runs in both modes, and is what its text says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from repl_fx.sources import load_source

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OUTPUT_SHAPES = {
    "resnet32": (2, 10),
    "vit": (2, 10),
    "digits": (2, 10),
    "gpt": (2, 32, 256),
    "mlp": (2, 10),
    "plain_parameters": (2, 10),
}


@pytest.mark.parametrize("name", OUTPUT_SHAPES)
def test_runs_in_both_modes_and_every_parameter_learns(name: str) -> None:
    source = load_source(str(EXAMPLES / f"{name}.py"))
    with torch.no_grad():
        first, second = (source.model.eval()(*source.args) for _ in range(2))
    assert first.shape == OUTPUT_SHAPES[name]
    assert torch.equal(first, second)
    assert first.isfinite().all()

    # Not the mean: logits of one row that are all the same would give no gradient through a norm.
    output = source.model.train()(*source.args)
    assert output.shape == OUTPUT_SHAPES[name]
    output.square().sum().backward()
    # Stochastic depth may drop a branch for the whole batch; then its gradient is zero, never absent.
    assert all(p.grad is not None for p in source.model.parameters())


@pytest.mark.parametrize("name", OUTPUT_SHAPES)
def test_is_an_ordinary_model(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert "repl_fx" not in text and "repl-fx" not in text


@pytest.mark.parametrize("name", ["vit", "gpt", "mlp"])
def test_dropout_is_on_in_training_only(name: str) -> None:
    source = load_source(str(EXAMPLES / f"{name}.py"))
    source.model.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (source.model(*source.args) for _ in range(2))
    assert not torch.equal(first, second)


def test_resnet32_is_the_network_of_the_paper() -> None:
    model = load_source(str(EXAMPLES / "resnet32.py")).model
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 32
    # 0.46 M in table 6 of the paper.
    assert sum(p.numel() for p in model.parameters()) == 464_154


def test_gpt_ties_its_head_to_its_embedding_and_looks_back_only() -> None:
    source = load_source(str(EXAMPLES / "gpt.py"))
    model, (ids,) = source.model.eval(), source.args
    assert model.get_parameter("head.weight") is model.get_parameter("tokens.weight")
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    with torch.no_grad():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0.0, atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_plain_parameters_has_no_module_but_lists() -> None:
    model = load_source(str(EXAMPLES / "plain_parameters.py")).model
    assert {type(m) for m in model.children()} == {nn.ParameterList}
