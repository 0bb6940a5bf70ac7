"""A folded model as DOT, which Graphviz lays out: panels and stacks are clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repl_fx.report.pictures.folded import Folded, Item, Panel, Stack

_LOOKS = {
    "input": 'fillcolor="#e6f4ea"',
    "output": 'fillcolor="#e6f4ea"',
    "synthesis": 'fillcolor="#f3e8fb"',
    "module": 'fillcolor="#e9edf3"',
    "repeat": 'shape=box3d, fillcolor="#dfeafa"',
    "kept": 'fillcolor="#dfeafa"',
    "replaced": 'fillcolor="#ffe3c2", color="#c25e00", penwidth=2',
    "refused": 'fillcolor="#eceff3", style="filled,dashed"',
}


def dot_of(folded: Folded) -> str:
    """The text of a DOT file."""
    return "\n".join(_lines(folded)) + "\n"


def _lines(folded: Folded) -> Iterator[str]:
    yield "digraph {"
    yield f"  label={_quoted(chr(10).join(folded.lines))}; labelloc=t; bgcolor=white; compound=true;"
    yield '  node [shape=box, style="filled,rounded", fillcolor=white, fontname="Helvetica", fontsize=11];'
    yield '  graph [fontname="Helvetica"]; edge [color="#5f6b7a"];'
    for number, panel in enumerate(folded.panels):
        yield from _panel(panel, f"p{number}")
        if panel.opened is not None:
            yield _opens(f"p{number}_{panel.opened}", f"p{number + 1}", folded.panels[number + 1].items)
        for place, opened in panel.stacks:
            yield _opens(f"p{number}_{place}", f"s{opened}", folded.stacks[opened].blocks)
    for number, stack in enumerate(folded.stacks):
        yield from _stack(stack, f"s{number}")
        if stack.opened is not None and folded.block is not None:
            yield _opens(f"s{number}_{stack.opened}", "b", folded.block.items)
    if folded.block is not None:
        yield from _panel(folded.block, "b")
    yield "}"


def _panel(panel: Panel, key: str) -> Iterator[str]:
    yield from _cluster(key, panel.title, panel.items)
    shown = {place for place, item in enumerate(panel.items) if item is not None}
    for route in panel.layout.routes:
        if {route.source, route.target} <= shown:
            yield f"  {key}_{route.source} -> {key}_{route.target};"


def _stack(stack: Stack, key: str) -> Iterator[str]:
    yield from _cluster(key, stack.title, stack.blocks)
    yield from (f"  {key}_{place} -> {key}_{place + 1};" for place in range(len(stack.blocks) - 1))


def _cluster(key: str, title: str, items: Sequence[Item | None]) -> Iterator[str]:
    yield f"  subgraph cluster_{key} {{"
    yield f'    label={_quoted(title)}; style="rounded"; color="#8a97a8";'
    for place, item in enumerate(items):
        if item is None:
            continue
        text = "\n".join(filter(None, (item.title, item.mark, item.detail)))
        look = _LOOKS.get(item.look)
        yield f"    {key}_{place} [label={_quoted(text)}, tooltip={_quoted(item.tip)}{f', {look}' if look else ''}];"
    yield "  }"


def _opens(box: str, cluster: str, items: Sequence[Item | None]) -> str:
    """A dashed line from a box to the first one of the cluster that shows what is inside it."""
    first = next(place for place, item in enumerate(items) if item is not None)
    return f"  {box} -> {cluster}_{first} [lhead=cluster_{cluster}, style=dashed, dir=none, constraint=false];"


def _quoted(text: str) -> str:
    """A string of DOT; a backslash would begin an escape, as would a NUL end the text."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "\ufffd")
    return '"' + plain.replace("\r", " ").replace("\n", "\\n") + '"'
