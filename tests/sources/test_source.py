"""Helpers of all kinds of sources: packages that are not installed, hashes and close names."""

from __future__ import annotations

import sys

import pytest

from repl_fx.errors import SourceError
from repl_fx.sources import load_source


@pytest.mark.parametrize(("zoo", "package"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")])
def test_a_zoo_that_is_not_installed(zoo: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=rf"needs {package}, which is not installed; pip install 'repl-fx\[zoo\]'"):
        load_source(f"{zoo}:resnet18")
