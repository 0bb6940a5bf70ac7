"""Whose turn it is, when a run ends, and the figures of what was measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from repl_fx.running.timing import Share, Spread, Timer, interleaved, latency, order, paired_ratio


def test_on_a_cpu_the_clock_is_read_at_each_mark() -> None:
    timer = Timer(torch.device("cpu"), "cpu")
    timer.now = iter([1.0, 3.0, 6.0]).__next__

    def step(mark: Callable[[], None]) -> None:
        for _ in range(3):
            mark()

    assert timer(step) == [2.0, 3.0]


def test_on_cuda_the_second_of_two_steps_is_timed_before_anything_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            self.at = len(done)
            done.append("event")

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.at - self.at)

    fake = SimpleNamespace(Event=Event, current_stream=lambda device: None, synchronize=lambda d: done.append("wait"))
    monkeypatch.setattr(torch, "cuda", fake)

    def run(mark: Callable[[], None]) -> None:
        mark()
        done.append("a part")
        mark()

    assert Timer(torch.device("cuda"))(run) == [2.0]
    assert done == ["a part", "event", "a part", "event", "wait"]
    done.clear()
    assert latency(lambda: done.append("call"), torch.device("cuda")) > 0
    assert done == ["wait", "call", "wait"]


def test_each_round_has_every_variant_once_in_another_order() -> None:
    rounds = [order("abcdef", number) for number in range(20)]
    assert all(sorted(one) == list("abcdef") for one in rounds)
    assert len({"".join(one) for one in rounds}) > 15
    assert {one[0] for one in rounds} == set("abcdef")
    assert rounds == [order("abcdef", number) for number in range(20)]


def _turns(took: list[str], names: str) -> dict[str, Callable[[], str]]:
    def turn(name: str) -> str:
        took.append(name)
        return name.upper()

    return {name: partial(turn, name) for name in names}


def test_rounds_of_warm_up_do_not_count() -> None:
    took: list[str] = []
    rounds = list(interleaved(_turns(took, "abc"), 2, warm_up=1, attempt=lambda name, turn: turn()))
    assert took == [name for number in range(3) for name in order("abc", number)]
    assert rounds == [{"a": "A", "b": "B", "c": "C"}] * 2


def test_a_variant_that_fails_has_no_more_turns_and_ends_nothing() -> None:
    took: list[str] = []

    def attempt(name: str, turn: Callable[[], str]) -> str | None:
        made = turn()
        return None if name == "b" and took.count("b") == 2 else made

    rounds = list(interleaved(_turns(took, "ab"), 3, warm_up=0, attempt=attempt))
    assert rounds == [{"a": "A", "b": "B"}, {"a": "A"}, {"a": "A"}]
    assert took.count("b") == 2


def test_a_round_that_is_cut_short_does_not_count() -> None:
    took: list[str] = []
    rounds = interleaved(
        _turns(took, "ab"), 9, warm_up=1, attempt=lambda name, turn: turn(), over=lambda: len(took) >= 5
    )
    assert len(list(rounds)) == 1 and len(took) == 5


def test_the_spread_is_median_quartiles_and_ends() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 10.0]) == Spread(3.0, 2.0, 4.0, 1.0, 10.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0)
    assert Spread.of([]) is None


def test_a_ratio_is_the_median_over_the_rounds_that_both_have() -> None:
    assert paired_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0, 9.0]) == 2.0
    assert paired_ratio([], [1.0]) is None


def of_load(draw: np.random.Generator, pairs: int, noise: float) -> tuple[list[float], list[float]]:
    """Times of which one is 0.78 of the other, each pair with noise."""
    times = np.exp(draw.normal(0, noise, (2, pairs))) * [[0.78], [1.0]]
    return list(times[0]), list(times[1])


def test_a_share_decides_where_its_interval_is_narrow_and_the_limit_outside() -> None:
    draw = np.random.default_rng(0)
    quiet = Share.of(*of_load(draw, 2000, 0.03))
    assert quiet is not None and quiet.pairs == 2000
    assert quiet.lower < 0.78 < quiet.upper and quiet.upper - quiet.lower < 0.02
    assert quiet.decides(0.8) and quiet.decides(0.7) and not quiet.decides(quiet.value)
    loud = Share.of(*of_load(draw, 30, 1.0))
    assert loud is not None and loud.wide and not loud.decides(0.8) and not loud.decides(50.0)
    few = Share.of([0.5] * 3, [1.0] * 3)
    assert few is not None and few.value == 0.5 and few.wide and Share.of([], [1.0]) is None


def test_interruptions_of_one_turn_of_each_pair_do_not_move_a_share() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = (np.array(times) for times in of_load(draw, 400, 0.01))
    # The longer turn is hit more often.
    hit = draw.random(400) < 0.4
    ours, theirs = ours + 40 * hit, theirs + 40 * ~hit
    assert paired_ratio(list(ours), list(theirs)) == pytest.approx(0.02, abs=0.01)
    share = Share.of(list(ours), list(theirs))
    assert share is not None and share.value == pytest.approx(0.78, abs=0.02) and share.decides(0.85)


def test_load_that_lasts_over_many_pairs_widens_a_share() -> None:
    draw = np.random.default_rng(0)
    by_stretch = np.repeat(draw.permutation(np.linspace(0.4, 1.0, 20)), 20) + draw.normal(0, 0.01, 400)
    found = [Share.of(list(some), [1.0] * 400) for some in (by_stretch, draw.permutation(by_stretch))]
    widths = [0.0 if one is None else one.upper - one.lower for one in found]
    assert widths[0] > 2 * widths[1] > 0
