"""Layouts: where the boxes of a group stand and how the edges between them run, by igraph's Sugiyama layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import cast

from repl_fx.errors import BadInput
from repl_fx.report.model_graph.document import Box, Layout, Route

_GAP, _BETWEEN_LAYERS, _MARGIN = 24, 36, 16
_CHARACTER, _PADDING = 7, 24
# Of igraph's search for fewer crossings.
_ITERATIONS = 30
# A mask that thousands of layers read would have a bend in each layer for each of them.
_MOST_BENDS = 20_000


@dataclass(frozen=True)
class Outline:
    """The shape of a group, by which groups share a layout.

    Attributes:
        sizes: width and height of each box, in pixels.
        edges: pairs of boxes; one from a later to an earlier box runs upwards.
        children, inputs: how many boxes are children, and how many behind them are inputs; the rest are outputs.
    """

    sizes: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, int], ...]
    children: int
    inputs: int

    def downwards(self, one: int, other: int) -> tuple[int, int]:
        """Two boxes, the upper one first: inputs stand above children, and outputs below."""
        lower, upper = sorted((one, other), key=self.rank, reverse=True)
        return upper, lower

    def rank(self, box: int) -> int:
        """The order of boxes from above to below."""
        return box - len(self.sizes) if self.children <= box < self.children + self.inputs else box


def box_size(*lines: str) -> tuple[int, int]:
    """Width and height of a box that holds some lines of text."""
    return max(map(len, lines)) * _CHARACTER + _PADDING, 16 * len(lines) + 12


def lay_out(outline: Outline) -> Layout:
    """Lay out the boxes of a group in layers, from top to bottom.

    Raises:
        BadInput: igraph is not installed.
    """
    if not outline.sizes:
        return Layout(2 * _MARGIN, 2 * _MARGIN, (), ())
    igraph = _igraph()
    layers = _layers(outline)
    edges = list(dict.fromkeys(outline.downwards(*edge) for edge in outline.edges if edge[0] != edge[1]))
    bent = _affordable(edges, layers)
    wide = max(width for width, _ in outline.sizes)
    graph = igraph.Graph(len(outline.sizes), bent, directed=True)
    placed = graph.layout_sugiyama(layers=layers, hgap=wide + _GAP, vgap=1, maxiter=_ITERATIONS)
    middles = [x for x, _ in placed.coords]
    bends = {edge: [(x, y) for x, y in points] for edge, points in zip(bent, placed.edge_routing, strict=True)}
    everywhere = [*middles, *(x for points in bends.values() for x, _ in points)]
    left = _MARGIN + wide / 2 - min(everywhere)
    tops, heights = _rows(outline, layers)
    boxes = [
        Box(round(left + x - width / 2), round(tops[layer] + (heights[layer] - height) / 2), width, height)
        for x, layer, (width, height) in zip(middles, layers, outline.sizes, strict=True)
    ]

    def points(one: int, other: int) -> list[tuple[int, int]]:
        upper, lower = boxes[one], boxes[other]
        inner = [(round(left + x), tops[round(y)] + heights[round(y)] // 2) for x, y in bends.get((one, other), ())]
        ends = (upper.x + upper.width // 2, upper.y + upper.height), (lower.x + lower.width // 2, lower.y)
        return [ends[0], *inner, ends[1]]

    routes = []
    for source, target in dict.fromkeys(outline.edges):
        if source != target:
            upper, lower = outline.downwards(source, target)
            way = points(upper, lower) if source == upper else points(upper, lower)[::-1]
            flat = (number for point in way for number in point)
            routes.append(Route(source, target, tuple(flat)))
    width = round(left + max(everywhere) + wide / 2 + _MARGIN)
    return Layout(width, tops[-1] + heights[-1] + _MARGIN, tuple(boxes), tuple(routes))


def _igraph() -> ModuleType:
    try:
        import igraph
    except ModuleNotFoundError as missing:
        raise BadInput(f"a report needs {missing.name}; pip install 'repl-fx[report]'") from missing
    return cast(ModuleType, igraph)


def _layers(outline: Outline) -> list[int]:
    """The layer of each box: below all that it reads; what reads nothing stands right above its first reader."""
    layers = [0] * len(outline.sizes)
    forward = sorted(
        (outline.downwards(*edge) for edge in outline.edges if edge[0] != edge[1]),
        key=lambda edge: outline.rank(edge[0]),
    )
    for upper, lower in forward:
        layers[lower] = max(layers[lower], layers[upper] + 1)
    fed = {lower for _, lower in forward}
    first: dict[int, int] = {}
    for upper, lower in forward:
        first[upper] = min(first.get(upper, layers[lower]), layers[lower])
    return [layer if box in fed else first.get(box, 1) - 1 for box, layer in enumerate(layers)]


def _affordable(edges: Sequence[tuple[int, int]], layers: Sequence[int]) -> list[tuple[int, int]]:
    """The edges that are led round boxes, the short ones first; each takes a place in every layer that it crosses."""
    taken, found = 0, []
    for edge in sorted(edges, key=lambda edge: (layers[edge[1]] - layers[edge[0]], edge)):
        taken += layers[edge[1]] - layers[edge[0]] - 1
        if taken > _MOST_BENDS:
            break
        found.append(edge)
    return found


def _rows(outline: Outline, layers: Sequence[int]) -> tuple[list[int], list[int]]:
    """The top of each layer, and its height."""
    heights = [0] * (max(layers) + 1)
    for layer, (_, height) in zip(layers, outline.sizes, strict=True):
        heights[layer] = max(heights[layer], height)
    tops, top = [], _MARGIN
    for height in heights:
        tops.append(top)
        top += height + _BETWEEN_LAYERS
    return tops, heights
