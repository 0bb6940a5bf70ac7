"""The boundaries of module calls on the nodes of a graph."""

from __future__ import annotations

from torch import fx

from repl_fx.graph.boundaries import (
    Boundary,
    ModuleCall,
    at_boundaries,
    boundaries,
    move_boundaries,
    note_boundary,
    places,
)


def test_a_place_is_the_name_and_the_keys_behind_it() -> None:
    found = dict(places({"x": 1, "more": (2, {"a": 3}), "flags": {}}))
    assert found == {("x",): 1, ("more", 0): 2, ("more", 1, "a"): 3}


def test_boundaries_are_found_by_the_module_and_move() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(abs, (x,))
    call, other = ModuleCall("a", []), ModuleCall("b", [])
    given, made = Boundary(call, argument=("x",)), Boundary(call, leaf=0)
    note_boundary(x, given)
    note_boundary(x, Boundary(other, argument=("x",)))
    note_boundary(y, made)
    assert list(at_boundaries(graph, "a")) == [(x, given), (y, made)]
    z = graph.call_function(abs, (y,))
    move_boundaries(y, z)
    assert boundaries(y) == ()
    assert list(at_boundaries(graph, "a")) == [(x, given), (z, made)]
