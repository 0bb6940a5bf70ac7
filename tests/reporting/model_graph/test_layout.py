"""Layouts: boxes that do not overlap, edges that run from box to box."""

from __future__ import annotations

import builtins
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from repl_fx.errors import BadInput
from repl_fx.reporting.model_graph.document import Box
from repl_fx.reporting.model_graph.layout import GroupShape, lay_out

# A value comes in, goes through two boxes side by side and a third, and leaves; the edge from 0 to 2 passes 1.
DIAMOND = GroupShape(((80, 40), (50, 40), (90, 60), (60, 40), (60, 40)), ((0, 1), (1, 2), (0, 2), (3, 0), (2, 4)), 3, 1)


def test_boxes_stand_in_the_order_of_edges_and_apart() -> None:
    layout = lay_out(DIAMOND)
    assert [(box.width, box.height) for box in layout.boxes] == list(DIAMOND.sizes)
    tops = [box.y for box in layout.boxes]
    assert tops[3] < tops[0] < tops[1] < tops[2] < tops[4]
    for one, other in combinations(layout.boxes, 2):
        apart = one.x + one.width <= other.x or other.x + other.width <= one.x
        assert apart or one.y + one.height <= other.y or other.y + other.height <= one.y
    assert all(box.x >= 0 and box.x + box.width <= layout.width for box in layout.boxes)
    assert all(box.y >= 0 and box.y + box.height <= layout.height for box in layout.boxes)


def test_edges_run_from_box_to_box() -> None:
    layout = lay_out(DIAMOND)
    assert [(route.source, route.target) for route in layout.routes] == list(DIAMOND.edges)
    for route in layout.routes:
        source, target = layout.boxes[route.source], layout.boxes[route.target]
        assert route.points[:2] == (source.x + source.width // 2, source.y + source.height)
        assert route.points[-2:] == (target.x + target.width // 2, target.y)
    # Past the box between.
    assert len(layout.routes[2].points) == 6


def test_an_edge_back_runs_upwards() -> None:
    layout = lay_out(GroupShape(((40, 20), (40, 20)), ((0, 1), (1, 0)), 2, 0))
    there, back = layout.routes
    assert there.points[1] < there.points[-1]
    assert back.points == there.points[2:] + there.points[:2]


def test_a_box_without_feeders_stands_above_its_reader() -> None:
    layout = lay_out(GroupShape(((40, 20),) * 5, ((0, 1), (1, 2), (2, 4), (3, 4)), 5, 0))
    assert layout.boxes[3].y == layout.boxes[2].y > layout.boxes[1].y


@given(st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_edges_run_downwards_whatever_is_connected(boxes: int, data: st.DataObject) -> None:
    pairs = st.tuples(st.integers(0, boxes - 1), st.integers(0, boxes - 1)).map(lambda pair: (min(pair), max(pair)))
    edges = data.draw(st.lists(pairs, max_size=12))
    layout = lay_out(GroupShape(((40, 20),) * boxes, tuple(edges), boxes, 0))
    assert {(route.source, route.target) for route in layout.routes} == {edge for edge in edges if edge[0] != edge[1]}
    for route in layout.routes:
        heights = route.points[1::2]
        assert all(above < below for above, below in pairwise(heights))
        # A bend in each layer that the edge passes.
        passed = {box.y for box in layout.boxes if heights[0] <= box.y and box.y + box.height <= heights[-1]}
        assert len(heights) - 2 >= len(passed)


def test_parts_that_nothing_joins_stand_side_by_side() -> None:
    layout = lay_out(GroupShape(((40, 20),) * 4, ((0, 1), (2, 3)), 4, 0))
    one, other = layout.boxes[0], layout.boxes[2]
    assert one.y == other.y and one.x + one.width < other.x
    assert [route.points[0] for route in layout.routes] == [one.x + 20, other.x + 20]


def test_nothing_is_laid_out_as_nothing() -> None:
    assert lay_out(GroupShape((), (), 0, 0)).boxes == ()


def test_a_value_that_everything_reads_is_not_led_round_every_box() -> None:
    many = 400
    edges = (*((i, i + 1) for i in range(many - 1)), *((0, i) for i in range(2, many)))
    layout = lay_out(GroupShape(((40, 20),) * many, edges, many, 0))
    assert len(layout.routes) == len(edges)
    # All bends of all edges together would be 79,000.
    assert sum(len(route.points) // 2 - 2 for route in layout.routes) <= 20_000


def test_boxes_of_no_size_take_no_room() -> None:
    full = lay_out(GroupShape(((40, 20), (40, 20), (40, 20)), ((0, 1), (1, 2)), 1, 1))
    sizes = ((40, 20), (0, 0), (40, 20), (0, 0), (40, 20))
    some = lay_out(GroupShape(sizes, ((0, 2), (0, 1), (2, 4)), 2, 2))
    assert [box for box in some.boxes if box.width] == list(full.boxes)
    assert [(route.source, route.target) for route in some.routes] == [(0, 2), (2, 4)]
    assert some.boxes[1] == some.boxes[3] == Box(0, 0, 0, 0)


def test_a_wide_box_does_not_spread_the_others() -> None:
    fan = tuple((0, i) for i in range(1, 6))
    layout = lay_out(GroupShape(((900, 20), *((40, 20),) * 5), fan, 6, 0))
    row = sorted(layout.boxes[1:], key=lambda box: box.x)
    assert all(24 <= other.x - one.x - one.width < 60 for one, other in pairwise(row))
    wide = lay_out(GroupShape(((40, 20), (40, 20), (300, 20), (40, 20)), ((0, 1), (0, 2), (0, 3)), 4, 0))
    row = sorted(wide.boxes[1:], key=lambda box: box.x)
    assert all(other.x - one.x - one.width >= 24 for one, other in pairwise(row))


def test_a_missing_igraph_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "igraph":
            raise ModuleNotFoundError("No module named 'igraph'", name="igraph")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=r"needs igraph; pip install 'repl-fx\[report\]'"):
        lay_out(DIAMOND)
