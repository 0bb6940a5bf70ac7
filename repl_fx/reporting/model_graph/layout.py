"""Layouts: where the boxes of a group stand and how the edges between them run, by igraph's Sugiyama layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from types import ModuleType
from typing import cast

import networkx

from repl_fx.errors import BadInput
from repl_fx.reporting.model_graph.document import Box, Layout, Route

_GAP, _BETWEEN_LAYERS, _MARGIN = 24, 36, 16
# Of igraph's search for fewer crossings.
_ITERATIONS = 30
# A mask that thousands of layers read would have a bend in each layer for each of them.
_MOST_BENDS = 20_000


@dataclass(frozen=True)
class GroupShape:
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


def lay_out(outline: GroupShape) -> Layout:
    """Lay out the boxes of a group in layers, from top to bottom; those of no size take no room.

    Raises:
        BadInput: igraph is not installed.
    """
    drawn = [box for box, size in enumerate(outline.sizes) if any(size)]
    if len(drawn) < len(outline.sizes):
        return _spread(lay_out(_of_boxes(outline, drawn)), drawn, len(outline.sizes))
    if not outline.sizes:
        return Layout(2 * _MARGIN, 2 * _MARGIN, (), ())
    layers = _layers(outline)
    middles, bends = _placed(outline, layers)
    halves = [width / 2 for width, _ in outline.sizes]
    bent = [x for points in bends.values() for x, _ in points]
    left = _MARGIN - min([x - half for x, half in zip(middles, halves, strict=True)] + bent)
    tops, heights = _rows(outline, layers)
    boxes = [
        Box(round(left + x - width / 2), round(tops[layer] + (heights[layer] - height) / 2), width, height)
        for x, layer, (width, height) in zip(middles, layers, outline.sizes, strict=True)
    ]

    def points(one: int, other: int) -> list[tuple[int, int]]:
        upper, lower = boxes[one], boxes[other]
        inner = [(round(left + x), tops[y] + heights[y] // 2) for x, y in bends.get((one, other), ())]
        ends = (upper.x + upper.width // 2, upper.y + upper.height), (lower.x + lower.width // 2, lower.y)
        return [ends[0], *inner, ends[1]]

    routes = []
    for source, target in dict.fromkeys(outline.edges):
        if source != target:
            upper, lower = outline.downwards(source, target)
            way = points(upper, lower) if source == upper else points(upper, lower)[::-1]
            flat = (number for point in way for number in point)
            routes.append(Route(source, target, tuple(flat)))
    right = max([x + half for x, half in zip(middles, halves, strict=True)] + bent)
    return Layout(round(left + right + _MARGIN), tops[-1] + heights[-1] + _MARGIN, tuple(boxes), tuple(routes))


def _placed(
    outline: GroupShape, layers: Sequence[int]
) -> tuple[list[float], dict[tuple[int, int], list[tuple[float, int]]]]:
    """The middle of each box, and the bends of edges that pass layers: middle and layer of each."""
    bent = _affordable(_downward_edges(outline), layers)
    # The middle width: where boxes are wider, they are moved apart.
    apart = sorted(width for width, _ in outline.sizes)[len(outline.sizes) // 2] + _GAP
    coords = [0.0] * len(outline.sizes)
    routing: dict[tuple[int, int], list[tuple[float, int]]] = {}
    right = 0.0
    for boxes, edges in _connected(len(outline.sizes), bent):
        places, bends = _connected_placed(boxes, edges, layers, apart)
        across = [x for x, _ in chain(places, *bends)]
        moved = right - min(across)
        right = max(across) + moved + apart
        for box, (x, _) in zip(boxes, places, strict=True):
            coords[box] = x + moved
        for edge, points in zip(edges, bends, strict=True):
            routing[edge] = [(x + moved, round(y)) for x, y in points]
    wide = [
        *((layer, x, width) for layer, x, (width, _) in zip(layers, coords, outline.sizes, strict=True)),
        *((layer, x, 0) for points in routing.values() for x, layer in points),
    ]
    middles = _without_overlaps(wide)
    bending = iter(middles[len(outline.sizes) :])
    bent_at = {edge: [(next(bending), layer) for _, layer in points] for edge, points in routing.items()}
    return middles[: len(outline.sizes)], bent_at


def _connected_placed(
    boxes: Sequence[int], edges: Sequence[tuple[int, int]], layers: Sequence[int], apart: float
) -> tuple[list[tuple[float, float]], list[list[tuple[float, float]]]]:
    """The places that igraph gives boxes, and the bends of edges, all of them connected.

    Of several connected parts in one layout, it mixes up which bends are of which edge.
    """
    place = {box: i for i, box in enumerate(boxes)}
    part = _igraph().Graph(len(boxes), [(place[one], place[other]) for one, other in edges], directed=True)
    of_boxes = [layers[box] for box in boxes]
    placed = part.layout_sugiyama(layers=of_boxes, hgap=apart, vgap=1, maxiter=_ITERATIONS)
    return placed.coords, placed.edge_routing


def _connected(boxes: int, edges: Sequence[tuple[int, int]]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """The boxes of each connected part, in ascending order, and the edges between them."""
    parts = _igraph().Graph(boxes, edges).connected_components()
    own: list[list[tuple[int, int]]] = [[] for _ in parts]
    for edge in edges:
        own[parts.membership[edge[0]]].append(edge)
    yield from zip(parts, own, strict=True)


def _without_overlaps(places: Sequence[tuple[int, float, int]]) -> list[float]:
    """The middles of boxes and bends, given by layer, middle and width, moved as little as keeps them apart.

    Least squares under an order: neighbours that are too close are pooled, and share the mean of their moves.
    """
    middles = [x for _, x, _ in places]
    for _, together in groupby(sorted(range(len(places)), key=lambda k: places[k][:2]), key=lambda k: places[k][0]):
        row = list(together)
        offsets = [0.0]
        for one, other in pairwise(row):
            offsets.append(offsets[-1] + (places[one][2] + places[other][2]) / 2 + _GAP)
        # Sum and number of each pool, whose means ascend.
        pools: list[tuple[float, int]] = []
        for member, offset in zip(row, offsets, strict=True):
            pool = (places[member][1] - offset, 1)
            while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
                total, size = pools.pop()
                pool = (pool[0] + total, pool[1] + size)
            pools.append(pool)
        starts = [total / size for total, size in pools for _ in range(size)]
        for member, offset, start in zip(row, offsets, starts, strict=True):
            middles[member] = start + offset
    return middles


def _of_boxes(outline: GroupShape, boxes: Sequence[int]) -> GroupShape:
    """The outline of some of the boxes, and what joins them."""
    place = {box: i for i, box in enumerate(boxes)}
    edges = tuple((place[one], place[other]) for one, other in outline.edges if one in place and other in place)
    inputs = range(outline.children, outline.children + outline.inputs)
    counts = sum(box < outline.children for box in boxes), sum(box in inputs for box in boxes)
    return GroupShape(tuple(outline.sizes[box] for box in boxes), edges, *counts)


def _spread(layout: Layout, boxes: Sequence[int], count: int) -> Layout:
    """A layout of some boxes as one of all, of which the others are empty."""
    placed = dict(zip(boxes, layout.boxes, strict=True))
    routes = tuple(Route(boxes[route.source], boxes[route.target], route.points) for route in layout.routes)
    return Layout(layout.width, layout.height, tuple(placed.get(i, Box(0, 0, 0, 0)) for i in range(count)), routes)


def _igraph() -> ModuleType:
    try:
        import igraph
    except ModuleNotFoundError as missing:
        raise BadInput(f"a report needs {missing.name}; pip install 'repl-fx[report]'") from missing
    return cast(ModuleType, igraph)


def _layers(outline: GroupShape) -> list[int]:
    """The layer of each box: below all that it reads; what reads nothing stands right above its first reader."""
    graph: networkx.DiGraph[int] = networkx.DiGraph(_downward_edges(outline))
    graph.add_nodes_from(range(len(outline.sizes)))
    layers = {box: layer for layer, boxes in enumerate(networkx.topological_generations(graph)) for box in boxes}
    first = (min((layers[reader] for reader in graph[box]), default=1) - 1 for box in range(len(layers)))
    return [layers[box] if graph.in_degree(box) else above for box, above in enumerate(first)]


def _downward_edges(outline: GroupShape) -> list[tuple[int, int]]:
    """Pairs of boxes that an edge joins, the upper one first."""
    return list(dict.fromkeys(outline.downwards(*edge) for edge in outline.edges if edge[0] != edge[1]))


def _affordable(edges: Sequence[tuple[int, int]], layers: Sequence[int]) -> list[tuple[int, int]]:
    """The edges that are led round boxes, the short ones first; each takes a place in every layer that it crosses."""
    taken, found = 0, []
    for edge in sorted(edges, key=lambda edge: (layers[edge[1]] - layers[edge[0]], edge)):
        taken += layers[edge[1]] - layers[edge[0]] - 1
        if taken > _MOST_BENDS:
            break
        found.append(edge)
    return found


def _rows(outline: GroupShape, layers: Sequence[int]) -> tuple[list[int], list[int]]:
    """The top of each layer, and its height."""
    heights = [0] * (max(layers) + 1)
    for layer, (_, height) in zip(layers, outline.sizes, strict=True):
        heights[layer] = max(heights[layer], height)
    tops, top = [], _MARGIN
    for height in heights:
        tops.append(top)
        top += height + _BETWEEN_LAYERS
    return tops, heights
