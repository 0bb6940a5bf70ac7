"""The registry of habits: a function each, that does to a model what people do and raises where that fails."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.habits.subject import FORMS, Subject

Trial = Callable[[Subject], str | None]
_HABITS: dict[str, Habit] = {}
_ROOMS = ("training", "saving", "timm_tools", "distributed", "frameworks", "hugging_face")


@dataclass(frozen=True)
class Habit:
    """Something that people do with a model.

    Attributes:
        name: the row of the table.
        trial: does it; may return a remark, and raises where it does not work.
        networks: those it is tried on.
        needs: packages besides timm and transformers.
        quick: whether the trial takes a second or two.
        processes: how many processes do it together.
        by_block: whether it goes block by block; see `Subject`.
        expected: for a form, why the habit cannot work with it.
    """

    name: str
    trial: Trial = field(repr=False)
    networks: tuple[str, ...]
    needs: tuple[str, ...] = ()
    quick: bool = True
    processes: int = 1
    by_block: bool = False
    expected: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)


class Failed(AssertionError):
    """A habit that runs and gives something wrong; the message is the reason."""


def habit(
    name: str,
    *networks: str,
    needs: tuple[str, ...] = (),
    quick: bool = True,
    processes: int = 1,
    by_block: bool = False,
    expected: Mapping[str, str] | None = None,
) -> Callable[[Trial], Trial]:
    """Register a function as a habit; see `Habit`."""
    unknown = set(expected or {}) - set(FORMS)
    if name in _HABITS or unknown:
        raise ValueError(f"habit {name!r} is there already, or expects something of {unknown}")

    def register(trial: Trial) -> Trial:
        _HABITS[name] = Habit(name, trial, networks, needs, quick, processes, by_block, expected or {})
        return trial

    return register


def habits() -> tuple[Habit, ...]:
    """All habits, in the order of the table."""
    for room in _ROOMS:
        importlib.import_module(f"benchmarks.habits.{room}")
    return tuple(_HABITS.values())


def require(holds: bool, reason: str) -> None:
    """Fail with a reason where something does not hold."""
    if not holds:
        raise Failed(reason)
