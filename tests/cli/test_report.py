"""`repl-fx report` and `inspect --html`: where the page goes, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from repl_fx.artifact.manifest import read_manifest
from repl_fx.cli.report import name_of
from repl_fx.reporting.model_graph.document import Document
from tests.cli.results import one_line

if TYPE_CHECKING:
    from .conftest import Run


@pytest.mark.slow
def test_an_artifact_gets_the_page_as_a_file_of_its_own(run: Run, artifact: Path) -> None:
    before = {path.name: path.read_bytes() for path in artifact.iterdir() if path.name != "manifest.json"}
    result = run("report", artifact)
    assert result.exit_code == 0, result.stderr
    assert f"written: {artifact / 'report.html'}\n" in result.stdout
    page = (artifact / "report.html").read_text("utf-8")
    assert 'id="view-after"' in page and 'id="verify"' in page
    after = {path.name: path.read_bytes() for path in artifact.iterdir() if path.name != "manifest.json"}
    assert after.keys() - before.keys() == {"report.html"} and before.items() <= after.items()
    assert {"report.html", "model.onnx"} <= read_manifest(artifact).files.keys()
    assert run("report", artifact).exit_code == 0
    (artifact / "report.html").write_text("mine")
    assert "report.html is not as repl-fx wrote it" in one_line(run("report", artifact))
    assert (artifact / "report.html").read_text() == "mine"


def test_a_model_gets_a_page_of_its_name(
    run: Run, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("report", model_file, "--json")
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "model-report.html").read_text("utf-8")
    assert "view-before" in page and 'id="view-after"' not in page
    document = msgspec.json.decode(result.stdout, type=Document)
    assert document.model.spec == str(model_file) and [row.name for row in document.repeats] == ["blocks"]
    line = one_line(run("report", model_file))
    assert line == "model-report.html exists; choose another place with -o, or replace it with --force"
    assert run("report", model_file, "--force").exit_code == 0


def test_inspect_writes_the_same_page(run: Run, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    result = run("inspect", model_file, "--html", file)
    assert result.exit_code == 0, result.stderr
    assert f"written: {file}" in result.stdout and "Repeats" in result.stdout
    assert 'id="view-before"' in file.read_text("utf-8")
    assert "page.html exists" in one_line(run("inspect", model_file, "--html", file))


@pytest.mark.parametrize("missing", ["igraph", "altair", "vl_convert", "jinja2"])
def test_a_missing_library_is_one_line(
    run: Run, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("repl_fx.reporting.page", "repl_fx.reporting.templates"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    line = one_line(run("report", model_file, "-o", tmp_path / "page.html"))
    assert line == f"report needs {missing}; pip install 'repl-fx[report]'"
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("examples/vit.py", "vit"),
        ("a/net.py:factory", "net"),
        ("torchvision:resnet18", "resnet18"),
        ("timm:vit_tiny_patch16_224.augreg", "vit_tiny_patch16_224.augreg"),
        ("hf:some/dir/", "dir"),
        ("hf:..", "model"),
    ],
)
def test_the_name_of_a_file_comes_from_the_specification(spec: str, name: str) -> None:
    assert name_of(spec) == name
