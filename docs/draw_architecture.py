"""Draw the folders of the engine, and what imports what, into docs/architecture.md."""

from __future__ import annotations

from pathlib import Path

import grimp
import networkx as nx

PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "```mermaid\n", "```\n"
# What every folder may import has no arrows.
_EVERYWHERE = {"errors", "config", "arguments", "_torch", "display", "__main__"}


def picture() -> str:
    """The folders as a Mermaid flow chart; an arrow that follows from two others is left out."""
    graph = grimp.build_graph("repl_fx", cache_dir=None)
    folders = {name.removeprefix("repl_fx.") for name in graph.find_children("repl_fx")} - _EVERYWHERE
    imports: nx.DiGraph[str] = nx.DiGraph()
    imports.add_nodes_from(sorted(folders))
    for importer in sorted(folders):
        for imported in sorted(folders - {importer}):
            if graph.direct_import_exists(
                importer=f"repl_fx.{importer}", imported=f"repl_fx.{imported}", as_packages=True
            ):
                imports.add_edge(importer, imported)
    arrows = sorted(nx.transitive_reduction(imports).edges)
    order = nx.lexicographical_topological_sort(imports)
    lines = ["flowchart TD", *(f"    {folder}" for folder in order), *(f"    {a} --> {b}" for a, b in arrows)]
    return "".join(f"{line}\n" for line in lines)


def drawn(page: str) -> str:
    """The page with the picture of now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + picture() + END + after


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text()))
