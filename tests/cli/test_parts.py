"""The commands on a model that is captured in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Run


MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))

class Finder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(Block() for _ in range(3)))

    def forward(self, x):
        y = self.body(x)
        return [y[i] for i, score in enumerate(y.sum(1).tolist()) if score > 0]

def model():
    return Finder()

def example_inputs():
    return (torch.randn(4, 8),)
"""


@pytest.fixture
def finder(tmp_path: Path) -> Path:
    file = tmp_path / "finder.py"
    file.write_text(MODEL)
    return file


@pytest.mark.slow
def test_transform_inspect_export_and_verify(run: Run, finder: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    done = run("transform", finder, "-o", place)
    assert done.exit_code == 0, done.stderr
    assert "captured in 1 part; the rest stays eager" in done.stdout
    assert "the model with graphs in it equals the model bit for bit, in evaluation and in training" in done.stdout
    shown = json.loads(run("inspect", place, "--json").stdout)
    assert [part["path"] for part in shown["parts"]["captured"]] == ["body"]
    assert [(part["path"], part["class"]) for part in shown["parts"]["eager"]] == [("", "Finder")]
    assert f"{finder}, line" in shown["parts"]["eager"][0]["reason"]
    assert [block["block"] for block in shown["blocks"]] == ["body.0", "body.1", "body.2"]
    assert shown["costs"]["before"]["flops"] == 3 * 2 * 2 * 4 * 8 * 16
    assert shown["repeats"][0]["flops_share"] == 1.0
    assert shown["costs"]["before"]["parts"] == 1

    exported = run("export", place)
    assert exported.exit_code == 0, exported.stderr
    assert "the code around them has no ONNX form" in exported.stdout
    assert "body: equivalent: 1 output at batch 1, 4, 7" in exported.stdout
    assert (place / "body.onnx").is_file() and not (place / "model.onnx").exists()
    assert json.loads((place / "verify.json").read_text())["parts"]["body"]["equivalent"] is True
    assert run("verify", place, place / "body.onnx").exit_code == 0
    other = run("verify", place, place / "body.onnx", "--part", "head")
    assert other.exit_code == 2 and "'head' is none; say which with --part body" in other.stderr
    misplaced = run("export", place, "-o", tmp_path / "one.onnx")
    assert misplaced.exit_code == 2 and "was captured in parts (body)" in misplaced.stderr


@pytest.mark.slow
def test_a_model_that_trains_in_parts_alone_is_one_file(run: Run, tmp_path: Path) -> None:
    place, file = tmp_path / "out", tmp_path / "masked.py"
    drawn = "y * torch.from_numpy(numpy.random.random(len(y))).to(y)[:, None] if self.training else y"
    ending = "[y[i] for i, score in enumerate(y.sum(1).tolist()) if score > 0]"
    file.write_text("import numpy\n" + MODEL.replace(ending, drawn))
    assert "captured in 1 part" in run("transform", file, "-o", place).stdout
    exported = run("export", place)
    assert exported.exit_code == 0, exported.stderr
    assert "captured in parts: the file is of evaluation mode" in exported.stdout
    assert sorted(place.glob("*.onnx")) == [place / "model.onnx"]
    for options in ([], ["--per-layer"]):
        verified = run("verify", place, place / "model.onnx", *options)
        assert verified.exit_code == 0 and "is the file that export verified" in verified.stdout
    with_part = run("verify", place, place / "model.onnx", "--part", "model")
    assert with_part.exit_code == 2 and "'model' is none; say which with --part body" in with_part.stderr
    assert run("report", place).exit_code == 0
