"""An artifact of a model file, for each test its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import repl_fx
from repl_fx.sources import load_source
from tests.artifact.edits import copy_artifact
from tests.artifact.tied_net import MODEL


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    (place / "net.py").write_text(MODEL)
    source = load_source(str(place / "net.py"))
    return repl_fx.save(
        repl_fx.transform(source.model, source.args, source.kwargs), place / "artifact", source=source
    ).parent


@pytest.fixture
def artifact(_made: Path, model_file: Path, tmp_path: Path) -> Path:
    """An artifact of its own for each test, of `model_file`."""
    return copy_artifact(_made, tmp_path)
