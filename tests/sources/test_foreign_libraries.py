"""Importing torchaudio, and transformers with it, beside a torch that its C++ library does not fit.

Each case runs in an interpreter of its own, on a package that loads its library as torchaudio does: the real one may be
installed or not, and its library may load or not.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

UTILS = """
import torch
from pathlib import Path
def _load_lib(lib):
    if not list(Path(__file__).parent.glob(f"{lib}*.so")):
        return False
    torch.ops.load_library(str(next(Path(__file__).parent.glob(f"{lib}*.so"))))
    return True
"""
PREPARE = "from repl_fx.sources.foreign_libraries import make_importable\nmake_importable()\nmake_importable()\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A package torchaudio whose library file is no library."""
    extension = tmp_path / "torchaudio" / "_extension"
    extension.mkdir(parents=True)
    (tmp_path / "torchaudio" / "__init__.py").write_text("from . import _extension\nloaded = _extension.loaded\n")
    (extension / "__init__.py").write_text("from .utils import _load_lib\nloaded = _load_lib('_torchaudio')\n")
    (extension / "utils.py").write_text(UTILS)
    (extension / "_torchaudio.so").write_bytes(b"built for another torch")
    return tmp_path


def run(place: Path, code: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nsys.path.insert(0, {str(place)!r})\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_library_file_that_does_not_load_fails_the_import(library: Path) -> None:
    # What the module is for: when torchaudio no longer fails, it can go.
    failed = run(library, "import torchaudio")
    assert failed.returncode != 0 and "OSError: Could not load this library" in failed.stderr


def test_it_is_taken_for_one_that_is_not_there(library: Path) -> None:
    done = run(library, PREPARE + "import torchaudio\nprint(torchaudio.loaded, len(sys.meta_path))")
    before = run(library, "import torch\nprint(len(sys.meta_path))")
    assert done.returncode == 0, done.stderr
    loaded, finders = done.stdout.split()
    assert loaded == "False" and int(finders) <= int(before.stdout) + 2


def test_a_library_that_loads_is_loaded(library: Path) -> None:
    code = (
        PREPARE
        + "import torch\ntorch.ops.load_library = lambda path: None\nimport torchaudio\nprint(torchaudio.loaded)"
    )
    assert run(library, code).stdout.strip() == "True"


def test_another_failure_surfaces(library: Path) -> None:
    utils = library / "torchaudio" / "_extension" / "utils.py"
    utils.write_text("def _load_lib(lib):\n    raise KeyError(lib)\n")
    failed = run(library, PREPARE + "import torchaudio")
    assert "KeyError: '_torchaudio'" in failed.stderr
    # A version that loads its files otherwise is left alone.
    utils.write_text("def load(lib):\n    return 3\n")
    (library / "torchaudio" / "_extension" / "__init__.py").write_text("from .utils import load\nloaded = load('')\n")
    assert run(library, PREPARE + "import torchaudio\nprint(torchaudio.loaded)").stdout.strip() == "3"
