"""Importing torchvision, timm, torchaudio and transformers beside a torch that their C++ libraries do not fit.

Each case runs in an interpreter of its own. torchaudio is a package that loads its library as torchaudio does: the real
one may be installed or not, and its library may load or not.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from repl_fx._foreign_libraries import hushed

UTILS = """
import torch
from pathlib import Path
def _load_lib(lib):
    if not list(Path(__file__).parent.glob(f"{lib}*.so")):
        return False
    torch.ops.load_library(str(next(Path(__file__).parent.glob(f"{lib}*.so"))))
    return True
"""
PREPARE = "import repl_fx\n"


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


BROKEN = """
import torch
def refuse(path):
    raise OSError("as beside another torch")
torch.ops.load_library = refuse
"""


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is missing")


def test_importing_repl_fx_imports_nothing_that_takes_time(tmp_path: Path) -> None:
    done = run(
        tmp_path, "import repl_fx\nprint(*(name for name in ('torch', 'numpy', 'torchvision') if name in sys.modules))"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "")


@pytest.mark.zoo
@needs("torchvision")
def test_torchvision_without_its_operators_fails_to_import(tmp_path: Path) -> None:
    # What declaring them is for: when torchvision no longer fails, it can go.
    failed = run(tmp_path, f"{BROKEN}import torchvision")
    assert failed.returncode != 0 and "operator torchvision::nms does not exist" in failed.stderr


@pytest.mark.zoo
@needs("torchvision")
def test_an_import_that_failed_before_can_be_repeated(tmp_path: Path) -> None:
    code = f"""{BROKEN}
try:
    import torchvision
except RuntimeError as error:
    print(error)
import repl_fx, torchvision
print(torchvision.extension._has_ops())
print(torchvision.models.resnet18(weights=None)(torch.zeros(2, 3, 32, 32)).shape)
boxes = torch.zeros(1, 4)
for call in (torchvision.ops.nms, torch.ops.torchvision.qnms):
    try:
        call(boxes, boxes[:, 0], 0.5)
    except (RuntimeError, NotImplementedError) as error:
        print(str(error).splitlines()[0][:40])
"""
    done = run(tmp_path, code)
    assert done.stdout.splitlines() == [
        "operator torchvision::nms does not exist",
        "False",
        "torch.Size([2, 1000])",
        "Couldn't load custom C++ ops. This can h",
        "Could not run 'torchvision::qnms' with a",
    ], done.stderr


@pytest.mark.zoo
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import timm; net = timm.create_model('test_vit')", id="timm", marks=needs("timm")),
        pytest.param("import torchvision", id="torchvision"),
        pytest.param("from transformers import DetrConfig, DetrImageProcessor", id="hf", marks=needs("transformers")),
        pytest.param("import importlib.util as u; u.find_spec('torchvision'); import torchvision.models", id="asked"),
        pytest.param("import repl_fx._foreign_libraries as f; f.make_importable(); import torchvision", id="twice"),
    ],
)
@needs("torchvision")
def test_importing_repl_fx_first_is_enough(tmp_path: Path, code: str) -> None:
    done = run(tmp_path, f"{BROKEN}import repl_fx\n{code}\nprint(torch.ops.torchvision.nms)")
    assert (done.returncode, done.stdout.strip()) == (0, "torchvision.nms"), done.stderr


@pytest.mark.zoo
@needs("torchvision")
def test_nothing_is_declared_before_torchvision_is_imported(tmp_path: Path) -> None:
    code = (
        "import importlib.util\nimportlib.util.find_spec('torchvision')\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert run(tmp_path, f"{BROKEN}import repl_fx\n{code}").stdout.strip() == "False"


def test_a_library_that_loads_is_left_alone(tmp_path: Path) -> None:
    vision = tmp_path / "torchvision"
    vision.mkdir()
    (vision / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    (vision / "extension.py").write_text(
        "import torch\nfor name in ('nms', 'qnms'):\n    torch.library.define(f'torchvision::{name}', '() -> Tensor')\n"
    )
    (vision / "_meta_registrations.py").write_text("")
    code = "import repl_fx, torch, torchvision\nprint(torch.ops.torchvision.nms.default._schema)"
    done = run(tmp_path, code)
    assert done.stdout.strip() == "torchvision::nms() -> Tensor", done.stderr


def test_a_library_that_is_imported_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("import torch\n")
    code = f"{BROKEN}import torchvision, repl_fx, torchvision\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    assert run(tmp_path, code).stdout.strip() == "False"


def test_a_library_that_others_find_is_mended_too(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").write_text("from . import _meta_registrations\n")
    (elsewhere / "_meta_registrations.py").write_text("import torch\nprint(torch.ops.torchvision.nms)\n")
    code = f"""
import importlib.util
class Editable:
    def find_spec(self, name, path=None, target=None):
        places = {{"torchvision": "__init__.py", "torchvision._meta_registrations": "_meta_registrations.py"}}
        place = {str(elsewhere)!r} + "/" + places.get(name, "")
        return importlib.util.spec_from_file_location(name, place) if name in places else None
{BROKEN}
import repl_fx
sys.meta_path.insert(0, Editable())
sys.meta_path.insert(0, sys.meta_path.pop(1))
import torchvision
"""
    done = run(tmp_path, code)
    assert done.stdout.strip() == "torchvision.nms", done.stderr


def test_hushed_libraries_say_nothing_and_others_do(caplog: pytest.LogCaptureFixture) -> None:
    noisy, mine = logging.getLogger("noisy_library"), logging.getLogger("mine")
    level = noisy.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with hushed(["noisy_library"], ["noisy_library"], ["soon gone"]):
            noisy.warning("of itself")
            mine.warning("of the user")
            warnings.warn_explicit("old", UserWarning, "file.py", 1, module="noisy_library.inner")
            warnings.warn("soon gone", stacklevel=1)
            warnings.warn("kept", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["kept"]
    assert caplog.messages == ["of the user"]
    assert noisy.level == level
