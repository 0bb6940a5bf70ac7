"""`repl-fx inspect`: what repeats and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from repl_fx.planning.scoring.scores import Scores
from tests.cli.results import document, one_line

if TYPE_CHECKING:
    from .conftest import Run


def test_inspect_shows_repeats_and_costs(run: Run, model_file: Path) -> None:
    result = run("inspect", model_file)
    assert result.exit_code == 0
    assert "captured by torch.export" in result.stdout
    assert "Repeats" in result.stdout and "Costs" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if str(model_file) not in line) <= 80


@pytest.mark.slow
def test_inspect_json(run: Run, model_file: Path) -> None:
    found = document(run("inspect", model_file, "--json").stdout)
    (repeat,) = found["repeats"]
    parameters = 16 + (8 * 16 + 16) + (16 * 8 + 8)
    assert (repeat["copies"], repeat["parameters_per_block"]) == (5, parameters)
    assert found["costs"]["parameters"] == 5 * parameters + 27
    assert found["costs"]["flops"] == 2 * 2 * (5 * 2 * 8 * 16 + 8 * 3)
    assert repeat["flops"] == 2 * 2 * 5 * 2 * 8 * 16


@pytest.mark.slow
def test_inspect_shows_the_sizes_that_the_inputs_may_have(run: Run, model_file: Path) -> None:
    result = run("inspect", model_file, "--input-shape", "2x6x8", "--fixed", "length")
    assert result.exit_code == 0
    assert "Sizes of the inputs" in result.stdout and "6 alone, as asked" in result.stdout
    (part,) = document(run("inspect", model_file, "--input-shape", "2x6x8", "--json").stdout)["parts"]["captured"]
    assert part["sizes"] == [
        {"name": "batch", "inputs": ["x"], "size": 2, "free": True, "takes": "any"},
        {"name": "length", "inputs": ["x"], "size": 6, "free": True, "takes": "any"},
    ]


def test_names_of_no_dimension_are_refused(run: Run, model_file: Path, artifact: Path) -> None:
    line = one_line(run("inspect", model_file, "--fixed", "height"))
    assert line == "fixed has 'height', which is no dimension of the inputs; free are batch"
    line = one_line(run("inspect", artifact, "--fixed", "batch"))
    assert "is an artifact, whose sizes are fixed as it was made; leave out --fixed" in line


@pytest.mark.slow
def test_inspect_of_an_artifact_shows_what_was_done(run: Run, artifact: Path) -> None:
    found = document(run("inspect", artifact, "--json").stdout)
    assert [block["status"] for block in found["blocks"]] == ["kept", "replaced", "kept", "replaced", "kept"]
    assert found["costs"]["after"]["parameters"] < found["costs"]["before"]["parameters"]
    shown = run("inspect", artifact)
    assert shown.exit_code == 0
    assert "rewritten Net" in shown.stdout and "Before and after" in shown.stdout


def test_inspect_where_nothing_repeats(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text("from torch import nn\ndef model(): return nn.Linear(4, 4)\n")
    result = run("inspect", file, "--input-shape", "2x4")
    assert result.exit_code == 0
    assert "nothing repeats" in result.stdout


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Vectors with labels."""
    file = tmp_path / "data.npz"
    train, test = (np.random.default_rng(0).normal(size=(size, 8)).astype(np.float32) for size in (40, 4))
    np.savez(file, train_x=train, train_y=np.arange(40) % 3, test_x=test, test_y=np.arange(4) % 3)
    return file


def test_inspect_scores_blocks_on_data(run: Run, model_file: Path, data: Path) -> None:
    options = ("inspect", model_file, "--data", f"npz:{data}", "--samples", "24", "--score", "loss", "--greedy", "1")
    shown = run(*options)
    assert shown.exit_code == 0, shown.stderr
    assert "5 blocks by influence, change, loss, over 24 samples; loss" in shown.stdout
    assert "blocks: rise of the loss without the block" in shown.stdout and "█" in shown.stdout
    found = document(run(*options, "--json").stdout)["scores"]
    assert Scores.from_json(json.dumps(found)).samples == 24 and len(found["blocks"]) == 5
    assert sum(score["greedy_rank"] == 1 for score in found["blocks"]) == 1


def test_inspect_refuses_scores_that_cannot_be(run: Run, model_file: Path, artifact: Path) -> None:
    assert "give --data" in one_line(run("inspect", model_file, "--score", "loss"))
    assert "give --score loss" in one_line(run("inspect", model_file, "--data", "digits", "--greedy", "2"))
    assert "give the model itself" in one_line(run("inspect", artifact, "--data", "digits"))
    assert "no data set 'nothing'" in one_line(run("inspect", model_file, "--data", "nothing"))


@pytest.mark.slow
def test_pictures(run: Run, artifact: Path, model_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("igraph")
    svg, dot = tmp_path / "net.svg", tmp_path / "net.dot"
    done = run("inspect", artifact, "--svg", svg, "--dot", dot, "--json")
    assert done.exit_code == 0, done.stderr
    assert document(done.stdout)["written"] == [str(svg), str(dot)]
    assert "→ " in svg.read_text(encoding="utf-8") and dot.read_text(encoding="utf-8").startswith("digraph {")
    assert "net.svg exists; " in one_line(run("inspect", model_file, "--svg", svg))
    again = run("inspect", model_file, "--svg", svg, "--force")
    assert again.exit_code == 0 and f"written: {svg}" in again.stdout
    assert "replaced" not in svg.read_text(encoding="utf-8").partition("</style>")[2]


def test_the_blocks_that_a_pattern_names(run: Run, model_file: Path) -> None:
    shown = run("inspect", model_file, "--blocks", "blocks.[0-2]", "--json")
    (repeat,) = document(shown.stdout)["repeats"]
    assert [block["name"] for block in repeat["blocks"]] == ["blocks.0", "blocks.1", "blocks.2"]
    for blocks, message in (
        ("3,5", "--blocks '3,5' names no repeat; give a pattern of module names, such as layers.*"),
        ("blocks.*.*", "blocks.0.up is no copy of blocks.0.norm: it has"),
    ):
        refused = run("inspect", model_file, "--blocks", blocks)
        assert refused.exit_code == 2 and message in refused.stderr
