"""Additions to the pages of docs/: the root's documents, the help of each command, and flow charts as pictures."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import igraph
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
_CHART = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
# Width and height of a box in a flow chart, in pixels.
_BOX = (104, 28)
_ARROW = (
    '<defs><marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 8 4 0 8z"/></marker></defs>'
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the documents that lie outside docs/."""
    for source, place in _ROOT_PAGES.items():
        files.append(File.generated(config, place, content=_relinked((ROOT / source).read_text(), source, place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages made of their targets; fill in the help of the commands, and flow charts."""
    if page.file.src_uri not in _ROOT_PAGES.values():
        markdown = _relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    markdown = _CHART.sub(_drawn, markdown)
    return markdown.replace(_HELP, _help_of_commands()) if _HELP in markdown else markdown


def _drawn(chart: re.Match[str]) -> str:
    """A flow chart as SVG: GitHub draws it by a script, which the site would have to fetch."""
    names = re.findall(r"^ +(\w+)$", chart[1], re.MULTILINE)
    arrows = [(names.index(a), names.index(b)) for a, b in re.findall(r"(\w+) --> (\w+)", chart[1])]
    wide, high = _BOX
    layout = igraph.Graph(len(names), arrows, directed=True).layout_sugiyama(hgap=wide + 20, vgap=high + 26)
    middles = _apart(layout.coords, wide + 12)
    bends = [[(x, y) for x, y in points] for points in layout.edge_routing]
    across = [x for x, _ in chain(middles, *bends)]
    left, top = min(across) - wide, -high
    shapes = []
    for (start, end), points in zip(arrows, bends, strict=True):
        (x, y), (to_x, to_y) = middles[start], middles[end]
        line = " ".join(f"{a},{b}" for a, b in ((x, y + high / 2), *points, (to_x, to_y - high / 2)))
        shapes.append(f'<polyline points="{line}" marker-end="url(#end)"/>')
    for name, (x, y) in zip(names, middles, strict=True):
        shapes.append(f'<rect x="{x - wide / 2}" y="{y - high / 2}" width="{wide}" height="{high}" rx="4"/>')
        shapes.append(f'<text x="{x}" y="{y + 5}">{name}</text>')
    view = f"{left} {top} {max(across) - left + wide} {max(y for _, y in middles) + 2 * high}"
    label = f"flow chart of {', '.join(names)}"
    return f'<svg class="flowchart" viewBox="{view}" role="img" aria-label="{label}">{_ARROW}{"".join(shapes)}</svg>'


def _apart(places: Iterable[Sequence[float]], distance: float) -> list[tuple[float, float]]:
    """The places, those of one row at least so far apart: igraph leaves half a gap between some."""
    middles = [(x, y) for x, y in places]
    least: dict[float, float] = {}
    for number in sorted(range(len(middles)), key=lambda number: middles[number][0]):
        x, y = middles[number]
        middles[number] = max(x, least.get(y, x)), y
        least[y] = middles[number][0] + distance
    return middles


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
