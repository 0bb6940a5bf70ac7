"""Which blocks go: every k-th or those named, never the ends of a repeat, and each refusal has its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from repl_fx.errors import BadInput, UnknownBlock
from repl_fx.finding.blocks import Block, Repeat
from repl_fx.finding.find_repeats import find_repeats
from repl_fx.planning.choose_blocks import Choice, candidates, choose_blocks, with_neighbours
from repl_fx.tracing.capture import capture
from tests.stages import Stages, images
from tests.surrogates.nets import Shrinking


def repeat(name: str, copies: int, *, shared: bool = False) -> Repeat:
    graph = fx.Graph()

    def block(number: int) -> Block:
        node = graph.placeholder("x")
        own = f"{name}.{number}"
        return Block(own, (node,), (node,), (node,), (), (), (f"{own}.fc.weight",), own, {id(own): 4})

    return Repeat(name, tuple(block(i) for i in range(copies)), (), shared)


def chosen(choice: Choice) -> list[tuple[str, str, str]]:
    return [(c.around[0], c.block.name, c.around[1]) for c in choice.chosen]


def refused(choice: Choice) -> dict[str, str]:
    return {refusal.block: refusal.reason for refusal in choice.refusals}


def test_every_second_block_goes_and_the_last_stays() -> None:
    choice = choose_blocks([repeat("a", 6)], every=2)
    assert chosen(choice) == [("a.0", "a.1", "a.2"), ("a.2", "a.3", "a.4")]
    assert refused(choice) == {}


def test_every_third_block_of_each_repeat() -> None:
    choice = choose_blocks([repeat("a", 7), repeat("b", 4)], every=3)
    assert [name for _, name, _ in chosen(choice)] == ["a.2", "a.5", "b.2"]


def test_neighbours_are_the_nearest_that_stay() -> None:
    choice = choose_blocks([repeat("a", 6)], blocks=["a.2", "a.3"])
    assert chosen(choice) == [("a.1", "a.2", "a.4"), ("a.1", "a.3", "a.4")]


def test_names_and_numbers_over_all_repeats() -> None:
    repeats = [repeat("a", 3), repeat("b", 3)]
    assert chosen(choose_blocks(repeats, blocks=["a.1", 5])) == chosen(choose_blocks(repeats, blocks=["2", "b.1"]))
    assert [name for _, name, _ in chosen(choose_blocks(repeats, blocks=[5]))] == ["b.1"]


@pytest.mark.parametrize(("block", "reason"), [("a.0", "first of its repeat"), ("a.2", "last of its repeat")])
def test_an_end_asked_for_by_name_is_refused(block: str, reason: str) -> None:
    choice = choose_blocks([repeat("a", 3)], blocks=[block])
    assert chosen(choice) == []
    assert reason in refused(choice)[block]


@pytest.mark.parametrize(
    ("copies", "every", "reason"), [(2, 2, "it has 2 blocks"), (4, 4, "with every=4 no block of its 4")]
)
def test_a_repeat_too_short_is_refused_as_a_whole(copies: int, every: int, reason: str) -> None:
    choice = choose_blocks([repeat("a", copies)], every=every)
    assert chosen(choice) == []
    assert list(refused(choice)) == ["a"] and reason in refused(choice)["a"]


def test_shared_blocks_have_nothing_to_save() -> None:
    choice = choose_blocks([repeat("a", 4, shared=True)], every=2)
    assert chosen(choice) == []
    assert refused(choice) == {"a.1": "all copies use the same parameters, so there is nothing to save"}


def test_surrogates_that_stand_alone_take_the_ends_too() -> None:
    repeats = [repeat("a", 4), repeat("b", 2)]
    every = choose_blocks(repeats, every=1, alone=True)
    assert [name for _, name, _ in chosen(every)] == ["a.0", "a.1", "a.2", "a.3", "b.0", "b.1"]
    second = choose_blocks(repeats, alone=True)
    assert chosen(second) == [("a.0", "a.1", "a.2"), ("a.2", "a.3", ""), ("b.0", "b.1", "")]
    third = choose_blocks(repeats, every=3, alone=True)
    assert chosen(third) == [("a.1", "a.2", "a.3")]
    assert refused(third) == {"b": "with every=3 none of its 2 blocks goes that is not part of another repeat"}
    named = choose_blocks(repeats, blocks=["a.0", "b.1"], alone=True)
    assert chosen(named) == [("", "a.0", "a.1"), ("b.0", "b.1", "")]


def test_blocks_that_change_sizes_go_by_surrogates_that_stand_alone() -> None:
    gm = capture(Shrinking(), (torch.randn(2, 8, 8, 8),))
    (similar,) = (one for one in find_repeats(gm) if one.similar)
    names = [block.name for block in similar.blocks]
    assert [pick.block.name for pick in choose_blocks([similar], every=1, alone=True).chosen] == names
    kept = [pick.block.name for pick in choose_blocks([similar]).chosen]
    assert kept and not {names[0], names[3]} & {*kept}


def test_a_block_goes_for_the_repeat_that_has_it_inside_before_one_that_has_it_at_an_end() -> None:
    exact = repeat("a", 2)
    ends = repeat("s", 2).blocks
    similar = replace(repeat("s", 2), blocks=(ends[0], *exact.blocks, ends[1]), similar=True)
    places = [(one.name, i) for one, i in candidates([exact, similar], alone=True).places]
    assert places == [("s", 1), ("s", 2), ("s", 0), ("s", 3)]
    choice = choose_blocks([exact, similar], every=1, alone=True)
    assert [(one.repeat.name, one.block.name) for one in choice.chosen] == [
        ("s", name) for name in ("s.0", "a.0", "a.1", "s.1")
    ]


def test_blocks_that_go_in_part_are_neighbours_of_others() -> None:
    whole = repeat("a", 4)
    picked = [(whole, i) for i in range(4)]
    found = with_neighbours(picked, alone={"a.0", "a.2", "a.3"})
    assert chosen(found) == [("", "a.0", ""), ("a.0", "a.1", "a.2"), ("", "a.2", ""), ("", "a.3", "")]
    assert refused(with_neighbours(picked[:2])) == {
        block: "no block like it is kept on one side" for block in ("a.0", "a.1")
    }


@pytest.mark.parametrize("glob", ["a.1", "*.1", "a.1.fc.*", "a.1.fc"])
def test_ignored_blocks_stay_and_serve_as_neighbours(glob: str) -> None:
    choice = choose_blocks([repeat("a", 6)], every=2, ignore=["nothing", glob])
    assert chosen(choice) == [("a.2", "a.3", "a.4")]
    assert refused(choice) == {"a.1": f"it matches --ignore {glob}"}


@pytest.mark.parametrize("every", [1, 0, -2])
def test_every_below_two(every: int) -> None:
    with pytest.raises(BadInput, match=f"every is {every}; it must be 2 or more"):
        choose_blocks([repeat("a", 6)], every=every)


@pytest.mark.parametrize("block", ["b.1", 7, 0, "0", "-1", None, 2.0])
def test_a_block_that_does_not_exist(block: Any) -> None:
    with pytest.raises(UnknownBlock, match=r"the blocks are a\.0, a\.1"):
        choose_blocks([repeat("a", 6)], blocks=[block])


def test_a_number_of_numpy_is_one() -> None:
    numbers: list[Any] = list(np.array([2, 4]))
    repeats = [repeat("a", 6)]
    assert choose_blocks(repeats, blocks=numbers) == choose_blocks(repeats, blocks=[2, 4])


def test_a_second_choice_is_the_same() -> None:
    repeats = [repeat("a", 6), repeat("b", 2)]
    assert chosen(choose_blocks(repeats)) == chosen(choose_blocks(repeats))
    assert refused(choose_blocks(repeats)) == refused(choose_blocks(repeats))


def test_a_number_is_a_place_and_a_text_is_a_name_first() -> None:
    plain = Repeat("repeat_1", tuple(replace(block, name=str(i)) for i, block in enumerate(repeat("a", 5).blocks)))
    assert [name for _, name, _ in chosen(choose_blocks([plain], blocks=[2]))] == ["1"]
    assert [name for _, name, _ in chosen(choose_blocks([plain], blocks=["2"]))] == ["2"]


def test_a_neighbour_that_another_repeat_gives_up_is_no_neighbour() -> None:
    exact = repeat("a", 5)
    # The same blocks again, as members of a longer repeat of similar ones.
    ends = repeat("s", 2).blocks
    similar = replace(repeat("s", 2), blocks=(ends[0], *exact.blocks, ends[1]), similar=True)
    choice = choose_blocks([exact, similar], blocks=["a.2", "a.0"])
    going = {c.block.name for c in choice.chosen}
    assert going == {"a.2", "a.0"}
    assert going.isdisjoint(name for c in choice.chosen for name in c.around)
    assert chosen(choice) == [("a.1", "a.2", "a.3"), ("s.0", "a.0", "a.1")]


def test_a_block_beside_one_that_goes_for_another_repeat_takes_the_next() -> None:
    exact = repeat("a", 5)
    ends = repeat("s", 2).blocks
    similar = replace(repeat("s", 2), blocks=(ends[0], exact.blocks[0], ends[1]), similar=True)
    choice = choose_blocks([exact, similar], blocks=["a.1", "a.0"])
    assert refused(choice)["a.1"] == "no block like it is kept on one side"
    assert chosen(choice) == [("s.0", "a.0", "s.1")]


def test_those_that_keep_their_size_can_go() -> None:
    choice = choose_blocks(find_repeats(capture(Stages(2, 2, 2), (images(),))))
    names = [tuple(name.partition("#")[0] for name in blocks) for blocks in chosen(choice)]
    assert names == [("units.0", "units.1", "units.2"), ("units.2", "units.3", "units.4")]


def test_what_exact_repeats_offer_is_left_to_them() -> None:
    repeats = find_repeats(capture(Stages(4, 2, 2), (images(),)))
    choice = choose_blocks(repeats)
    assert [(c.repeat.similar, c.block.name.partition("#")[0]) for c in choice.chosen] == [
        (False, "units.1"),
        (True, "units.5"),
    ]
    # A stage of many equal blocks alone has no similar repeat beside it.
    assert not any(r.similar for r in find_repeats(capture(Stages(5), (images(),))))


def test_explicit_blocks_do_not_go_twice() -> None:
    repeats = find_repeats(capture(Stages(4, 2, 2), (images(),)))
    exact, similar = (next(r for r in repeats if r.similar is kind) for kind in (False, True))
    choice = choose_blocks(repeats, blocks=[exact.blocks[1].name, similar.blocks[1].name])
    assert [c.block.name for c in choice.chosen] == [exact.blocks[1].name]
    assert [r.reason for r in choice.refusals] == [f"it is part of {exact.blocks[1].name}, which goes"]


def test_candidates_are_all_but_the_ends() -> None:
    found = candidates([repeat("a", 4), repeat("b", 2), repeat("c", 4, shared=True)], ["a.2.*"])
    assert [(its.name, i) for its, i in found.places] == [("a", 1)]
    reasons = {refusal.block: refusal.reason for refusal in found.refusals}
    assert reasons["a.2"] == "it matches --ignore a.2.*" and "it has 2 blocks" in reasons["b"]
    assert "nothing to save" in reasons["c.1"]


def test_a_node_is_part_of_one_candidate_alone() -> None:
    one = repeat("a", 3)
    other = Repeat("b", tuple(replace(block, name=f"b.{i}") for i, block in enumerate(one.blocks)))
    found = candidates([one, other])
    assert [(its.name, i) for its, i in found.places] == [("a", 1)]
    assert [str(refusal) for refusal in found.refusals] == ["b.1 stays: it is part of a.1, which may go"]


def test_candidates_of_similar_repeats_are_those_that_every_chooses_among() -> None:
    repeats = find_repeats(capture(Stages(2, 2, 2), (images(),)))
    places = {its.blocks[i].name for its, i in candidates(repeats).places}
    assert {c.block.name for c in choose_blocks(repeats, every=2).chosen} <= places
    assert places == {"units.1#similar_1", "units.3#similar_1"}
    # Those that change sizes, for a surrogate that can do so too.
    more = {its.blocks[i].name for its, i in candidates(repeats, changes_sizes=True).places}
    assert more == {*places, "units.2", "units.4"}


def test_neighbours_of_what_goes_together_are_kept() -> None:
    own = repeat("a", 5)
    assert chosen(with_neighbours([(own, 1), (own, 2)])) == [("a.0", "a.1", "a.3"), ("a.0", "a.2", "a.3")]
    ends = with_neighbours([(own, 0)])
    assert not ends.chosen and "kept on one side" in ends.refusals[0].reason
