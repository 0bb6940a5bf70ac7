"""How fast the page of a report is: first paint and a click, in headless Chromium, by the size of the model.

    python -m benchmarks.report_page                    graphs of 1,000, 5,000 and 20,000 nodes
    python -m benchmarks.report_page --nodes 20000 --runs 5

The model is one repeat of blocks of 50 nodes, every other one replaced; a block has two nested modules. The page has it
twice, before and after. The document is made without a model, written as a page, and opened from disk by a fresh tab
for each run. First paint is First Contentful Paint, from the start of the navigation, and `ready` is when the script
has drawn the picture. A click is from its event to the frame after it: on the repeat, which shows all its blocks, and
on a block; the search is of a word that every node has. Times are milliseconds, the median and the largest.

Needs the extras `report` and `test`, and a Chromium. Exit status: 0; 2 where there is none.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from repl_fx.reporting.model_graph.document import (
    SCHEMA,
    Box,
    Cost,
    Document,
    Graph,
    Group,
    Layout,
    MadeBy,
    ModelFacts,
    Node,
    RepeatRow,
    Route,
    Totals,
    Value,
    View,
    Views,
)

BLOCK = 50
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Resolves behind the frame that shows what a click changed.
_CLICK = """(target) => new Promise((resolve) => {
    const from = performance.now();
    target.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    requestAnimationFrame(() => { const seen = new MessageChannel(); seen.port1.onmessage = () =>
        resolve(performance.now() - from); seen.port2.postMessage(0); });
})"""
_SEARCH = """(field) => new Promise((resolve) => {
    const from = performance.now();
    field.value = "linear";
    field.dispatchEvent(new Event("input"));
    requestAnimationFrame(() => { const seen = new MessageChannel(); seen.port1.onmessage = () =>
        resolve(performance.now() - from); seen.port2.postMessage(0); });
})"""
_PAINT = """() => new Promise((resolve) => {
    const known = performance.getEntriesByName("first-contentful-paint");
    if (known.length) resolve(known[0].startTime);
    else new PerformanceObserver((list) => { for (const one of list.getEntries())
        if (one.name === "first-contentful-paint") resolve(one.startTime); })
        .observe({ type: "paint", buffered: true });
})"""


def chain(count: int) -> tuple[tuple[Box, ...], tuple[Route, ...], int]:
    """Boxes one below another with a line between each and the next, and the height of all."""
    boxes = tuple(Box(16, 16 + 90 * i, 250, 46) for i in range(count))
    routes = tuple(Route(i, i + 1, (141, 62 + 90 * i, 141, 106 + 90 * i)) for i in range(count - 1))
    return boxes, routes, 90 * count


def layout_of(count: int) -> Layout:
    """A layout of boxes one below another."""
    boxes, routes, height = chain(count)
    return Layout(282, height, boxes, routes)


def large_document(nodes: int) -> Document:
    """A document of a model of blocks, before and after; its graph before has that many nodes, or some fewer."""
    blocks = nodes // BLOCK
    sides = [_graph(blocks, after=after) for after in (False, True)]
    # The same tree on both sides: each group is the counterpart of that in its place.
    totals = [Cost(group.parameters, group.flops, group.kept) for group in (side.groups[0] for side in sides)]
    return Document(
        schema=SCHEMA,
        made=MadeBy("0", "0", "2026-01-01T00:00:00+00:00"),
        model=ModelFacts("large.py", "Large", "torch.export", ()),
        totals=Totals(2, *totals),
        views=Views(*(View((side,)) for side in sides)),
        layouts={
            "top": layout_of(1),
            "repeat": layout_of(blocks),
            "block": layout_of(2),
            "half": layout_of(BLOCK // 2),
        },
        repeats=(RepeatRow("layers", tuple(f"layers.{i}" for i in range(blocks)), BLOCK, 10_000 * blocks, "exact"),),
    )


def _graph(blocks: int, *, after: bool) -> Graph:
    groups: list[Group] = []
    nodes: list[Node] = []
    half = BLOCK // 2
    top = (blocks * BLOCK, 10_000 * blocks, 10**6 * blocks, 10**4 * blocks)
    groups.append(Group("", "Large", "graph", (-2,), "top", *top, counterpart=0))
    children = tuple(-1 - (2 + 3 * i) for i in range(blocks))
    groups.append(Group("layers", "layers", "repeat", children, "repeat", *top, parent=0, copies=blocks, counterpart=1))
    for i in range(blocks):
        place, gone = len(groups), i % 2 == 1
        first = i * BLOCK
        groups.append(
            Group(
                f"layers.{i}",
                str(i),
                "surrogate" if gone and after else "block",
                (-2 - place, -3 - place),
                "block",
                BLOCK,
                10_000,
                10**6,
                10**4,
                parent=1,
                outputs=(first + BLOCK - 1,),
                status="replaced" if gone else "kept",
                surrogate="slim" if gone else None,
                counterpart=place,
            )
        )
        for j, name in enumerate(("attention", "mlp")):
            inside = tuple(range(first + j * half, first + (j + 1) * half))
            groups.append(
                Group(
                    f"layers.{i}.{name}",
                    name,
                    "module",
                    inside,
                    "half",
                    half,
                    5_000,
                    5 * 10**5,
                    5 * 10**3,
                    parent=place,
                    outputs=(inside[-1],),
                    counterpart=place + 1 + j,
                )
            )
            nodes += [Node(f"linear_{n}", 0, "layer", place + 1 + j, 1, 0, 200, 20_000, 200, 2) for n in inside]
    edges = tuple((i, i + 1) for i in range(len(nodes) - 1))
    words = ("Linear", "layers.0.attention.projection", "large.py:12")
    return Graph(
        "", "Large", "torch.export", words, (Value("2×8 float32", (2, 8)),), tuple(groups), tuple(nodes), edges
    )


def times_of(page: Any, file: Path) -> dict[str, float]:
    """Milliseconds of what a reader waits for, on a page that is opened anew."""
    page.goto(file.as_uri())
    times = {"first paint": page.evaluate(_PAINT)}
    page.wait_for_selector("#view-before .box")
    times["ready"] = page.evaluate("() => performance.now()")
    for name, label in (("click on the repeat", "layers,"), ("click on a block", "layers.3,")):
        times[name] = page.locator(f'#view-before .box[aria-label^="{label}"]').evaluate(_CLICK)
    times["search"] = page.locator("#search").evaluate(_SEARCH)
    return times


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    browser_file = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser_file is None:
        print(f"no browser: none of {', '.join(_BROWSERS)} is installed", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    from repl_fx.reporting.page import render_page

    table = Table("nodes", "bytes", "", "median, ms", "largest, ms", box=None)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        browser = playwright.chromium.launch(executable_path=browser_file)
        for nodes in options.nodes:
            file = Path(scratch) / f"{nodes}.html"
            file.write_text(render_page(large_document(nodes)), "utf-8")
            runs = []
            for _ in range(options.runs):
                page = browser.new_page()
                runs.append(times_of(page, file))
                page.close()
            for name in runs[0]:
                found = [run[name] for run in runs]
                cells = (f"{nodes:,}", f"{file.stat().st_size:,}", name)
                table.add_row(*cells, f"{statistics.median(found):.0f}", f"{max(found):.0f}")
        browser.close()
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
