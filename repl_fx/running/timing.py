"""Times of variants that take turns: the clocks, the order of the turns, and the spread of what was measured."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Pairs one after the other are in one stretch, of so many: load of a machine comes and goes in stretches of time. The
# bootstrap draws stretches so many times.
_STRETCHES, _DRAWS = 20, 400
# A share whose interval is a wider part of it than this decides nothing, nor does one of fewer pairs than these.
_WIDE, _FEW = 0.1, 5
Mark = Callable[[], None]
Result = TypeVar("Result")


class Timer:
    """Seconds between the marks of a step.

    On CUDA, events on the stream of the device time them; before the step that is timed runs another of the same kind,
    which is not waited for, so that the host is ahead of the device as it is in a loop. Elsewhere a clock of the host
    times them.

    Args:
        device: where the steps run.
        clock: of `CLOCKS`; without meaning on CUDA.
    """

    def __init__(self, device: torch.device, clock: str = "wall") -> None:
        self.device = device
        self.now = CLOCKS[clock]

    def __call__(self, step: Callable[[Mark], object]) -> list[float]:
        """Time one step, which calls the mark that it gets before, between and after its parts."""
        if self.device.type == "cuda":
            return self._by_events(step)
        times: list[float] = []
        step(lambda: times.append(self.now()))
        return [end - begin for begin, end in pairwise(times)]

    def _by_events(self, step: Callable[[Mark], object]) -> list[float]:
        events: list[Any] = []
        # Has no annotations.
        event: Any = torch.cuda.Event

        def mark() -> None:
            events.append(event(enable_timing=True))
            events[-1].record(torch.cuda.current_stream(self.device))

        step(lambda: None)
        step(mark)
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(events)]


def latency(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from a call to its result, for which the host waits."""
    _synchronize(device)
    begin = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    turns: Mapping[str, Callable[[], Result]],
    rounds: int,
    *,
    warm_up: int,
    attempt: Callable[[str, Callable[[], Result]], Result | None],
    over: Callable[[], bool] = lambda: False,
) -> Iterator[dict[str, Result]]:
    """Let variants take turns, in another order every round, so that what disturbs the machine meets all of them.

    Args:
        turns: one repetition of each variant.
        rounds: how many count.
        warm_up: rounds before those.
        attempt: makes a turn of a variant; None where it fails, and the variant has no more turns.
        over: whether no time is left; a round that is cut short does not count.

    Yields:
        The results of each round, by variant.
    """
    left = dict(turns)
    for number in range(warm_up + rounds):
        made: dict[str, Result] = {}
        for name in order(left, number):
            if over():
                return
            result = attempt(name, left[name])
            if result is None:
                del left[name]
            else:
                made[name] = result
        if number >= warm_up:
            yield made


def order(names: Iterable[str], number: int) -> list[str]:
    """The order of the variants in a round: another each time, the same in each run."""
    names = list(names)
    return random.Random(number).sample(names, len(names))


@dataclass(frozen=True)
class Spread:
    """The spread of some samples.

    Attributes:
        lower, upper: the quartiles.
        least, most: the smallest and the largest sample.
    """

    median: float
    lower: float
    upper: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread | None:
        """The spread of samples; None where there are none."""
        if not samples:
            return None
        least, lower, middle, upper, most = (float(one) for one in np.quantile(samples, [0, 0.25, 0.5, 0.75, 1]))
        return cls(middle, lower, upper, least, most)


@dataclass(frozen=True)
class Share:
    """A time as a share of another, of turns that were taken in pairs.

    Other processes only add to a time, and to a longer one more often: the median of the shares of pairs may be far off
    where half of the turns are interrupted. So what the fastest turns of both took is compared, a tenth of them.

    Attributes:
        value: the share.
        lower, upper: the ends of the interval that it is in 95 times of 100, by a bootstrap of stretches of pairs
            (Künsch 1989, The jackknife and the bootstrap for general stationary observations).
        pairs: how many.
    """

    value: float
    lower: float
    upper: float
    pairs: int

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Share | None:
        """The share of one's times of another's, pair by pair in the order of time; None where there are none."""
        pairs = np.array(list(zip(ours, theirs, strict=False)), float)
        if not len(pairs):
            return None
        stretches = np.array_split(pairs, min(_STRETCHES, len(pairs)))
        draws = np.random.default_rng(0).integers(0, len(stretches), (_DRAWS, len(stretches)))
        each = [_fast(np.concatenate([stretches[i] for i in drawn])) for drawn in draws]
        value, (lower, upper) = _fast(pairs), np.quantile(each, [0.025, 0.975])
        return cls(value, min(value, float(lower)), max(value, float(upper)), len(pairs))

    @property
    def wide(self) -> bool:
        """Tell whether the interval is too wide for any word on a limit, or made of next to no pairs."""
        return self.pairs < _FEW or self.upper - self.lower > _WIDE * self.value

    def decides(self, limit: float) -> bool:
        """Tell whether it says on which side of a limit the true share is."""
        return not self.wide and not self.lower <= limit < self.upper


def _fast(pairs: npt.NDArray[np.float64]) -> float:
    ours, theirs = np.quantile(pairs, 0.1, axis=0)
    return float(ours / theirs)


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The median over rounds of one variant's time as a multiple of another's; None where no round has both."""
    # A variant that failed has fewer rounds than the others.
    ratios = [x / y for x, y in zip(ours, theirs, strict=False)]
    return median(ratios) if ratios else None
