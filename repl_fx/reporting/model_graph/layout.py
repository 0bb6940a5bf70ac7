"""Layouts: where the boxes of a group stand and how the edges between them run, by igraph's Sugiyama layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby, pairwise

import networkx

from repl_fx.errors import needing
from repl_fx.graph.grouping import grouped
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
        inputs = range(self.children, self.children + self.inputs)
        upper, lower = sorted((one, other), key=lambda box: (box not in inputs, box))
        return upper, lower


def lay_out(outline: GroupShape) -> Layout:
    """Lay out the boxes of a group in layers, from top to bottom; those of no size take no room.

    Raises:
        BadInput: igraph is not installed.
    """
    drawn = [box for box, size in enumerate(outline.sizes) if any(size)]
    if not drawn:
        return Layout(2 * _MARGIN, 2 * _MARGIN, (Box(0, 0, 0, 0),) * len(outline.sizes), ())
    joined = (edge for edge in dict.fromkeys(outline.edges) if edge[0] != edge[1])
    edges = [edge for edge in joined if all(any(outline.sizes[box]) for box in edge)]
    downwards = list(dict.fromkeys(outline.downwards(*edge) for edge in edges))
    layers = _layers(drawn, downwards)
    middles, bends = _placed(outline, layers, downwards)
    bent = [x for points in bends.values() for x, _ in points]
    left = _MARGIN - min([middles[box] - outline.sizes[box][0] / 2 for box in drawn] + bent)
    right = max([middles[box] + outline.sizes[box][0] / 2 for box in drawn] + bent)
    tops, heights = _rows(outline, layers)
    boxes = [Box(0, 0, 0, 0)] * len(outline.sizes)
    for box, layer in layers.items():
        width, height = outline.sizes[box]
        top = tops[layer] + (heights[layer] - height) / 2
        boxes[box] = Box(round(left + middles[box] - width / 2), round(top), width, height)

    def points(one: int, other: int) -> list[tuple[int, int]]:
        upper, lower = boxes[one], boxes[other]
        inner = [(round(left + x), tops[y] + heights[y] // 2) for x, y in bends.get((one, other), ())]
        ends = (upper.x + upper.width // 2, upper.y + upper.height), (lower.x + lower.width // 2, lower.y)
        return [ends[0], *inner, ends[1]]

    routes = []
    for source, target in edges:
        upper, lower = outline.downwards(source, target)
        way = points(upper, lower) if source == upper else points(upper, lower)[::-1]
        routes.append(Route(source, target, tuple(chain.from_iterable(way))))
    return Layout(round(left + right + _MARGIN), tops[-1] + heights[-1] + _MARGIN, tuple(boxes), tuple(routes))


def _placed(
    outline: GroupShape, layers: Mapping[int, int], edges: Sequence[tuple[int, int]]
) -> tuple[dict[int, float], dict[tuple[int, int], list[tuple[float, int]]]]:
    """The middle of each box, and the bends of edges that pass layers: middle and layer of each."""
    # The middle width: where boxes are wider, they are moved apart.
    apart = sorted(outline.sizes[box][0] for box in layers)[len(layers) // 2] + _GAP
    coords = dict.fromkeys(layers, 0.0)
    routing: dict[tuple[int, int], list[tuple[float, int]]] = {}
    right = 0.0
    for boxes, own in _connected(layers, _affordable(edges, layers)):
        places, bends = _connected_placed(boxes, own, layers, apart)
        across = [x for x, _ in chain(places, *bends)]
        moved = right - min(across)
        right = max(across) + moved + apart
        coords |= {box: x + moved for box, (x, _) in zip(boxes, places, strict=True)}
        for edge, points in zip(own, bends, strict=True):
            routing[edge] = [(x + moved, round(y)) for x, y in points]
    wide = [
        *((layer, coords[box], outline.sizes[box][0]) for box, layer in layers.items()),
        *((layer, x, 0) for points in routing.values() for x, layer in points),
    ]
    middles = iter(_without_overlaps(wide))
    placed = {box: next(middles) for box in layers}
    return placed, {edge: [(next(middles), layer) for _, layer in points] for edge, points in routing.items()}


def _connected_placed(
    boxes: Sequence[int], edges: Sequence[tuple[int, int]], layers: Mapping[int, int], apart: float
) -> tuple[list[tuple[float, float]], list[list[tuple[float, float]]]]:
    """The places that igraph gives boxes, and the bends of edges, all of them connected.

    Of several connected parts in one layout, it mixes up which bends are of which edge.
    """
    with needing("report", "a report"):
        import igraph
    place = {box: i for i, box in enumerate(boxes)}
    part = igraph.Graph(len(boxes), [(place[one], place[other]) for one, other in edges], directed=True)
    of_boxes = [layers[box] for box in boxes]
    placed = part.layout_sugiyama(layers=of_boxes, hgap=apart, vgap=1, maxiter=_ITERATIONS)
    return placed.coords, placed.edge_routing


def _connected(
    boxes: Iterable[int], edges: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """The boxes of each connected part, in ascending order, and the edges between them."""
    graph: networkx.Graph[int] = networkx.Graph()
    graph.add_nodes_from(boxes)
    graph.add_edges_from(edges)
    parts = list(map(sorted, networkx.connected_components(graph)))
    number = {box: k for k, part in enumerate(parts) for box in part}
    own = grouped((number[edge[0]], edge) for edge in edges)
    yield from ((part, own.get(k, [])) for k, part in enumerate(parts))


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


def _layers(boxes: Sequence[int], edges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The layer of each box: below all that it reads; what reads nothing stands right above its first reader."""
    graph: networkx.DiGraph[int] = networkx.DiGraph(edges)
    graph.add_nodes_from(boxes)
    layers = {box: layer for layer, inside in enumerate(networkx.topological_generations(graph)) for box in inside}
    above = {box: min((layers[reader] for reader in graph[box]), default=1) - 1 for box in boxes}
    return {box: layers[box] if graph.in_degree(box) else above[box] for box in boxes}


def _affordable(edges: Sequence[tuple[int, int]], layers: Mapping[int, int]) -> list[tuple[int, int]]:
    """The edges that are led round boxes, the short ones first; each takes a place in every layer that it crosses."""
    taken, found = 0, []
    for edge in sorted(edges, key=lambda edge: (layers[edge[1]] - layers[edge[0]], edge)):
        taken += layers[edge[1]] - layers[edge[0]] - 1
        if taken > _MOST_BENDS:
            break
        found.append(edge)
    return found


def _rows(outline: GroupShape, layers: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """The top of each layer, and its height."""
    heights = [0] * (max(layers.values()) + 1)
    for box, layer in layers.items():
        heights[layer] = max(heights[layer], outline.sizes[box][1])
    tops = accumulate(heights[:-1], lambda top, height: top + height + _BETWEEN_LAYERS, initial=_MARGIN)
    return list(tops), heights
