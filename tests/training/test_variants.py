"""The models of a comparison: paired starts, the same blocks gone."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch

from repl_fx.benchmarking.results import ORIGINAL, PRUNED, REWRITTEN
from repl_fx.training.train_config import TrainConfig
from repl_fx.training.variants import Models

MODEL = """
    import torch
    from tests.training.runs import Net

    def model():
        return Net()

    def example_inputs():
        return (torch.randn(2, 1, 4, 4),)
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(dedent(MODEL))
    return str(path)


def test_variants_of_a_seed_begin_with_the_same_weights(spec: str) -> None:
    models = Models(spec, TrainConfig(surrogate="bottleneck"))
    plan = models.transform(models.source(0)).plan
    made = {name: models.variant(name, 3, plan).state_dict() for name in (ORIGINAL, PRUNED, REWRITTEN)}
    gone = plan.replacements[0].block
    for name, state in made.items():
        assert any(key.startswith(f"{gone}.fc1") for key in state) == (name == ORIGINAL)
        assert all(torch.equal(value, made[ORIGINAL][key]) for key, value in state.items() if key in made[ORIGINAL])
    assert any(".surrogate." in key for key in made[REWRITTEN])
    assert not any(".surrogate." in key for key in made[PRUNED])
    other = models.variant(ORIGINAL, 4, plan).state_dict()
    assert not torch.equal(other["head.weight"], made[ORIGINAL]["head.weight"])


def test_the_depth_pruned_plan_has_the_same_blocks(spec: str) -> None:
    models = Models(spec, TrainConfig(surrogate="bottleneck", set=("ratio=0.5",)))
    plan = models.transform(models.source(0)).plan
    assert plan.replacements[0].settings["ratio"] == 0.5
    pruned = plan.without_surrogates()
    assert [r.block for r in pruned.replacements] == [r.block for r in plan.replacements]
    assert {r.surrogate for r in pruned.replacements} == {"identity"}


def test_settings_choose_the_blocks(spec: str) -> None:
    models = Models(spec, TrainConfig(blocks="2", surrogate="blend"))
    assert [r.block for r in models.transform(models.source(0)).plan.replacements] == ["blocks.1"]
