"""Layouts: boxes that do not overlap, edges that run from box to box."""

from __future__ import annotations

import builtins
from itertools import combinations
from typing import Any

import pytest

from repl_fx.errors import BadInput
from repl_fx.report.model_graph.layout import Outline, box_size, lay_out

# A value comes in, goes through two boxes side by side and a third, and leaves; the edge from 0 to 2 passes 1.
DIAMOND = Outline(((80, 40), (50, 40), (90, 60), (60, 40), (60, 40)), ((0, 1), (1, 2), (0, 2), (3, 0), (2, 4)), 3, 1)


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
    layout = lay_out(Outline(((40, 20), (40, 20)), ((0, 1), (1, 0)), 2, 0))
    there, back = layout.routes
    assert there.points[1] < there.points[-1]
    assert back.points == there.points[2:] + there.points[:2]


def test_a_box_without_feeders_stands_above_its_reader() -> None:
    layout = lay_out(Outline(((40, 20),) * 5, ((0, 1), (1, 2), (2, 4), (3, 4)), 5, 0))
    assert layout.boxes[3].y == layout.boxes[2].y > layout.boxes[1].y


def test_nothing_is_laid_out_as_nothing() -> None:
    assert lay_out(Outline((), (), 0, 0)).boxes == ()


def test_a_value_that_everything_reads_is_not_led_round_every_box() -> None:
    many = 400
    edges = (*((i, i + 1) for i in range(many - 1)), *((0, i) for i in range(2, many)))
    layout = lay_out(Outline(((40, 20),) * many, edges, many, 0))
    assert len(layout.routes) == len(edges)
    # All bends of all edges together would be 79,000.
    assert sum(len(route.points) // 2 - 2 for route in layout.routes) <= 20_000


def test_boxes_fit_their_words() -> None:
    assert box_size("a", "a longer line") > box_size("a", "b")
    assert box_size("a", "b")[1] > box_size("a")[1]


def test_a_missing_igraph_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "igraph":
            raise ModuleNotFoundError("No module named 'igraph'", name="igraph")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=r"needs igraph; pip install 'repl-fx\[report\]'"):
        lay_out(DIAMOND)
