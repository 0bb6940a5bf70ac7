"""Helpers of all kinds of sources: packages that are not installed, and hashes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from repl_fx.errors import SourceError
from repl_fx.sources import load_source
from repl_fx.sources.source import describe, hash_file, package_code


@pytest.mark.parametrize(("zoo", "package"), [("timm", "timm"), ("torchvision", "torchvision"), ("hf", "transformers")])
def test_a_zoo_that_is_not_installed(zoo: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SourceError, match=rf"needs {package}, which is not installed; pip install 'repl-fx\[zoo\]'"):
        load_source(f"{zoo}:resnet18")


def test_a_zoo_whose_import_fails_names_the_package_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "site-packages"
    place.mkdir()
    (place / "timm.py").write_text("import torchvision")
    (place / "torchvision.py").write_text("raise RuntimeError('no operator')")
    monkeypatch.syspath_prepend(place)
    for name in ("timm", "torchvision"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    said = (
        r"timm:x: importing timm failed: torchvision cannot be imported \(RuntimeError: no operator\); `repl-fx doctor`"
    )
    with pytest.raises(SourceError, match=said):
        load_source("timm:x")


def test_an_exception_on_one_line() -> None:
    assert describe(ValueError("no\n  luck")) == "ValueError: no luck"
    assert describe(KeyError()) == "KeyError"


def test_a_package_that_raises_is_one_error() -> None:
    with (
        pytest.raises(SourceError, match="shop:x could not be built: ZeroDivisionError: "),
        package_code("shop:x could not be built"),
    ):
        1 / 0  # noqa: B018


def test_files_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some bytes")
    assert hash_file(tmp_path / "file") == hashlib.sha256(b"some bytes").hexdigest()
