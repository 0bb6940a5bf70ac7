"""Importing torchvision beside a torch that its C++ library does not fit.

Each case runs in an interpreter of its own: operators cannot be taken back, nor torchvision imported twice.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap

import pytest

needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is missing")
BROKEN = """
import torch
def refuse(path):
    raise OSError("as beside another torch")
torch.ops.load_library = refuse
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.zoo
@needs_torchvision
def test_torchvision_without_its_operators_fails_to_import() -> None:
    # What the module is for: when torchvision no longer fails, it can go.
    with pytest.raises(AssertionError, match="operator torchvision::nms does not exist"):
        run(BROKEN + "import torchvision")


@pytest.mark.zoo
@needs_torchvision
def test_declared_operators_let_the_import_through() -> None:
    printed = run(
        BROKEN
        + """
from repl_fx._torchvision_ops import declare_missing_operators
print(declare_missing_operators(), declare_missing_operators())
import torchvision
print(torchvision.models.resnet18(weights=None)(torch.zeros(2, 3, 32, 32)).shape)
"""
    )
    assert printed.splitlines() == ["('torchvision::nms', 'torchvision::qnms') ()", "torch.Size([2, 1000])"]


@pytest.mark.zoo
@needs_torchvision
def test_an_import_that_failed_before_can_be_repeated() -> None:
    printed = run(
        BROKEN
        + """
from repl_fx._torchvision_ops import declare_missing_operators
try:
    import torchvision
except RuntimeError as error:
    print(error)
print(len(declare_missing_operators()))
import torchvision
print(torchvision.extension._has_ops())
"""
    )
    assert printed.splitlines() == ["operator torchvision::nms does not exist", "2", "False"]


@pytest.mark.zoo
@needs_torchvision
def test_an_operator_without_a_kernel_says_so_when_called() -> None:
    printed = run(
        BROKEN
        + """
from repl_fx._torchvision_ops import declare_missing_operators
declare_missing_operators()
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    print(str(error).splitlines()[0])
"""
    )
    assert printed.startswith("Could not run 'torchvision::nms'")


@needs_torchvision
def test_nothing_is_declared_where_the_library_loads() -> None:
    printed = run(
        """
import torch
torch.ops.load_library = lambda path: None
from repl_fx._torchvision_ops import declare_missing_operators
print(declare_missing_operators(), hasattr(torch.ops.torchvision, "nms"))
"""
    )
    assert printed == "() False"


def test_nothing_is_declared_where_torchvision_is_not_installed() -> None:
    printed = run(
        """
import importlib.util, torch
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find_spec(name, *rest)
from repl_fx._torchvision_ops import declare_missing_operators
print(declare_missing_operators(), hasattr(torch.ops.torchvision, "nms"))
"""
    )
    assert printed == "() False"


@needs_torchvision
def test_nothing_is_declared_once_torchvision_is_imported() -> None:
    printed = run(
        """
import sys, types, torch
sys.modules["torchvision"] = types.ModuleType("torchvision")
from repl_fx._torchvision_ops import declare_missing_operators
print(declare_missing_operators(), hasattr(torch.ops.torchvision, "nms"))
"""
    )
    assert printed == "() False"
