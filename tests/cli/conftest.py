"""A tiny model file, and a way to run commands in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from repl_fx.cli import app
from tests.artifact.edits import copy_artifact

MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.dropout = nn.Dropout(0.1)
        self.down = nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(self.dropout(torch.relu(self.up(self.norm(x)))))

class Net(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(x))

def model(depth=5):
    return Net(depth)

def example_inputs():
    return (torch.randn(2, 8),)
"""

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs `repl-fx` with these arguments in this process."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="repl-fx")

    return call


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A model.py of five tiny blocks."""
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return file


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    place = tmp_path_factory.mktemp("exported")
    (place / "model.py").write_text(MODEL)
    for command in (("transform", place / "model.py", "-o", place / "artifact"), ("export", place / "artifact")):
        result = run(*command)
        assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def artifact(tmp_path: Path, _exported: Path) -> Path:
    """An artifact of its own for each test, with model.onnx and verify.json; its model.py lies beside it."""
    return copy_artifact(_exported, tmp_path / "copy")
