"""Files that models are made from: Python files, and directories of transformers."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sources.hub import Hub
from tests.sources.model_file import Write
from tests.sources.own_model import write_own_model
from tests.sources.saved_model import BERT


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a Python file and returns its path."""

    def write_file(code: str, name: str = "model.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    return write_file


@pytest.fixture(scope="session")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture
def _another_seed() -> None:
    # That of load_source is 0: random weights would equal saved ones.
    torch.manual_seed(7)


@pytest.fixture(scope="session")
def _bert(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("saved") / "bert"
    torch.manual_seed(7)
    transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).save_pretrained(place)
    return place


@pytest.fixture
def bert(tmp_path: Path, _bert: Path) -> Path:
    """A BertForMaskedLM as transformers saves it, for each test its own."""
    return Path(shutil.copytree(_bert, tmp_path / "bert"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty cache of the Hugging Face hub, without a network."""
    constants: Any = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


@pytest.fixture
def own(tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose model is made of the code in it; tmp_path / "ran" tells when that ran."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    place = tmp_path / "net"
    write_own_model(place, tmp_path / "ran")
    return place
