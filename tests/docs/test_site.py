"""The site builds without a warning, and asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from repl_fx.cli import app
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module, extra in (("mkdocs", "docs"), ("material", "docs"), ("mkdocstrings", "docs")):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'repl-fx[{extra}]'")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return place


@pytest.mark.slow
def test_nothing_is_fetched_to_show_it(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    loaded = r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"([^\"]+)|<link\b[^>]*?\bhref=\"([^\"]+)|url\(([^)]+)\)"
    for page in pages:
        for source in re.findall(loaded, page.read_text()):
            assert "//" not in "".join(source), page


def test_the_reference_has_every_command_and_docstring(site: Path) -> None:
    commands = (site / "commands.html").read_text()
    assert all(f'<h2 id="{command.name}">' in commands for command in app.registered_commands)
    python = (site / "api.html").read_text()
    assert 'id="repl_fx.transform"' in python and "any module; it is not changed" in python


def test_pages_outside_docs_are_linked_where_they_are_on_the_site(site: Path) -> None:
    assert 'href="CONTRIBUTING.html"' in (site / "architecture.html").read_text()
    assert 'href="surrogates.html#your-own"' in (site / "CONTRIBUTING.html").read_text()
    assert 'href="bench.html"' in (site / "benchmarks.html").read_text()


def test_the_flow_chart_is_a_picture(site: Path) -> None:
    page = (site / "architecture.html").read_text()
    assert '<svg class="flowchart"' in page and "mermaid" not in page
