"""Python's own structure in the code of a flat graph.

    skip = skip_layer(training)                 if skip: …
    …                                      ->   else: …
    choose = choose(skip, before, after)

    mode = enter_autocast(…)                    mode = enter_autocast(…)
    …                                      ->   try: …
    exit_autocast(mode)                         except BaseException: exit_autocast(mode); raise
                                                exit_autocast(mode)

An error inside a region (a device out of memory, which batch-size finders catch) would leave the process under autocast
or without gradients.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from repl_fx.graph.decisions import indented, jump_over, line_of
from repl_fx.graph.runtime import REGIONS


def regions_of(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """The nodes that begin the regions of a graph, without gradients or of a precision, with those that end them."""
    begun = sorted(node for target in REGIONS for node in graph.find_nodes(op="call_function", target=target))
    return [(begin, end) for begin in begun for end in begin.users if end.target is REGIONS[begin.target]]


def structure_code_(graph: fx.Graph) -> None:
    """Let the code of a graph, written from now on, jump over layers, and end regions that an error leaves."""
    ends = regions_of(graph)
    jumping = jump_over(graph)

    def transform(body: list[str]) -> list[str]:
        lines = "".join(body).splitlines(keepends=True)
        if jumping is not None:
            lines = jumping(lines)
        for begin, end in ends:
            lines = _guarded(lines, begin, end)
        return lines

    # None takes away what asked for decisions that are gone; the annotation in torch does not know it.
    wanted: Any = transform if ends or jumping else None
    graph.on_generate_code(lambda _: wanted)


def _guarded(lines: list[str], begin: fx.Node, end: fx.Node) -> list[str]:
    """Lines of code, of which those between two nodes end the region if by an error."""
    first, last = line_of(lines, begin.name), line_of(lines, end.name)
    margin = lines[first][: -len(lines[first].lstrip())]
    region = indented(lines[first + 1 : last])
    if region:
        call = lines[last].partition(" = ")[2].partition(";")[0].rstrip()
        caught = [f"{margin}except BaseException:\n", f"{margin}    {call}\n", f"{margin}    raise\n"]
        lines = [*lines[: first + 1], f"{margin}try:\n", *region, *caught, *lines[last:]]
    return lines
