"""The boundaries of module calls on the nodes of a graph."""

from __future__ import annotations

from torch import Tensor, fx

from repl_fx.graph.boundaries import (
    Boundary,
    ModuleCall,
    at_boundaries,
    boundaries,
    move_boundaries,
    note_boundary,
    note_objects_,
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


def test_an_object_of_the_other_mode_is_noted_where_this_one_has_none() -> None:
    traces = []
    for given in (
        {("x",): Tensor, ("cache",): None, ("flag",): True},
        {("cache",): dict, ("flag",): False, ("x",): int},
    ):
        graph, call = fx.Graph(), ModuleCall("a", [], given)
        note_boundary(graph.placeholder("x"), Boundary(call, argument=("x",)))
        traces.append((graph, call))
    (training, call), (evaluation, other) = traces
    note_objects_(training, evaluation)
    assert call.given == {("x",): Tensor, ("cache",): dict, ("flag",): True}
    assert other.given[("flag",)] is False
