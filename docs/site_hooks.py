"""What mkdocs adds to the pages in docs/: the root's documents, and the help of each command."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.testing import CliRunner

from repl_fx.cli import app

ROOT = Path(__file__).parents[1]
# Documents outside docs/, which GitHub shows where they are, and their places on the site.
_ROOT_PAGES = {
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
_HELP = "<!-- help of the commands -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the documents that lie outside docs/."""
    for source, place in _ROOT_PAGES.items():
        files.append(File.generated(config, place, content=_relinked((ROOT / source).read_text(), source, place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages made of their targets, and fill in the help of the commands."""
    if page.file.src_uri not in _ROOT_PAGES.values():
        markdown = _relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    return markdown.replace(_HELP, _help_of_commands()) if _HELP in markdown else markdown


def _relinked(markdown: str, source: str, place: str) -> str:
    """The text with links as seen from `place` on the site, where they were as seen from `source` in the repository."""

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        on_site = _ROOT_PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(on_site, posixpath.dirname(place) or ".")

    return _LINK.sub(moved, markdown)


def _help_of_commands() -> str:
    sections = []
    for command in ("", *(info.name or "" for info in app.registered_commands)):
        arguments = [*command.split(), "--help"]
        shown = CliRunner().invoke(app, arguments, prog_name="repl-fx", catch_exceptions=False).stdout.rstrip()
        sections.append(f"## {command or 'repl-fx'}\n\n```text\n{shown}\n```\n")
    return "\n".join(sections)
