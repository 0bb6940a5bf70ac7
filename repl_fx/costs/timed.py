"""Times of a graph, node by node or whole, in evaluation mode on its example inputs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from repl_fx.costs.counted import Interpreter
from repl_fx.errors import BadInput, foreign_code, one_line
from repl_fx.running.timing import Mark, Share, Timer, interleaved, latency
from repl_fx.running.untouched import device_of, in_mode, seeded, untouched
from repl_fx.tracing.parts.capture_parts import Part

_WARM_UP = 3
# Rounds of nodes, at least and at most, and seconds that they take in between.
_ROUNDS, _SECONDS = (15, 200), 1.0
# A turn of a whole model takes as many calls as fill this time, in seconds: what is shorter is interrupted less often.
_TURN = 0.001
# Seconds that pairs of turns take, at least and at most, and pairs in between.
_PAIRED, _PAIRS = (2.0, 20.0), (20, 20_000)
# More pairs say nothing of a share whose interval is narrower than this part of it.
_NARROW = 0.01


def node_times(graphs: Mapping[str, Part]) -> dict[str, dict[str, int]]:
    """Nanoseconds of each node of some graphs, which take turns; medians over the rounds, by graph and name of node.

    Raises:
        BadInput: a graph that cannot be timed; says why.
    """
    device = _device(list(graphs.values()))
    timer = Timer(device)
    turns = {
        name: partial(timer, partial(_step, timed, Interpreter(timed.graph_module))) for name, timed in graphs.items()
    }
    with _still(graphs.values(), device), _own_failures():
        found, begin = [], time.perf_counter()
        for one in interleaved(turns, _ROUNDS[1], warm_up=_WARM_UP, attempt=lambda name, turn: turn()):
            found.append(one)
            if len(found) >= _ROUNDS[0] and time.perf_counter() - begin > _SECONDS:
                break
    times: dict[str, dict[str, int]] = {}
    for name, timed in graphs.items():
        each = [median(seconds) for seconds in zip(*(one[name] for one in found), strict=True)]
        nodes = [node.name for node in timed.graph_module.graph.nodes]
        times[name] = {node: round(1e9 * seconds) for node, seconds in zip(nodes, each, strict=True)}
    return times


def latency_share(before: Sequence[Part], after: Sequence[Part]) -> Share:
    """The time of one call of each of some graphs, as a share of that of others, in pairs of turns.

    Pairs go on until the share is known to a hundredth of it, or time is over.

    Raises:
        BadInput: see `node_times`.
    """
    sides = {"before": before, "after": after}
    every = [timed for side in sides.values() for timed in side]
    device = _device(every)

    def seconds(side: Sequence[Part], calls: int) -> float:
        return sum(
            latency(partial(timed.inputs.fresh().passed_to, timed.graph_module), device)
            for _ in range(calls)
            for timed in side
        )

    with _still(every, device), _own_failures():
        once = max(min(seconds(side, 1) for _ in range(_WARM_UP)) for side in sides.values())
        calls = max(1, math.ceil(_TURN / once))
        turns = {name: partial(seconds, side, calls) for name, side in sides.items()}
        found, begin, known_at = list[dict[str, float]](), time.perf_counter(), 0.0
        for one in interleaved(turns, _PAIRS[1], warm_up=_WARM_UP, attempt=lambda name, turn: turn()):
            found.append(one)
            took = time.perf_counter() - begin
            if len(found) < _PAIRS[0] or took < max(_PAIRED[0], known_at + _SECONDS):
                continue
            share, known_at = _share(found), took
            if took > _PAIRED[1] or share.upper - share.lower < _NARROW * share.value:
                break
    return _share(found)


def _share(found: Sequence[Mapping[str, float]]) -> Share:
    share = Share.of([one["after"] for one in found], [one["before"] for one in found])
    assert share is not None  # there are pairs
    return share


def _step(timed: Part, interpreter: Interpreter, mark: Mark) -> None:
    interpreter.run_marked(mark, timed.inputs.fresh())


def _device(graphs: Sequence[Part]) -> torch.device:
    device = device_of(graphs[0].graph_module, graphs[0].inputs)
    if device.type not in ("cpu", "cuda"):
        raise BadInput(
            f"latency cannot be measured on device {device}; leave latency out of the budget, or choose cpu or cuda"
        )
    return device


@contextmanager
def _still(graphs: Any, device: torch.device) -> Iterator[None]:
    """The surroundings of a measurement, which leaves graphs and generators as they were."""
    with ExitStack() as stack, seeded(device, 0), torch.no_grad():
        for timed in graphs:
            stack.enter_context(untouched(timed.graph_module, buffers=True))
            stack.enter_context(in_mode(timed.graph_module, False))
        yield


def _own_failures() -> AbstractContextManager[None]:
    mend = "leave latency out of the budget"
    return foreign_code(lambda problem: BadInput(f"latency cannot be measured: {one_line(problem)}; {mend}"))
