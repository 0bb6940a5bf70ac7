"""Decisions of a forward, as a trace meets them: `if torch.rand([]) < p: continue`, `if x.isinf().any(): x = clamp(x)`.

A trace has no value for a number that is drawn or computed, and cannot branch on one. Where a forward asks for the
truth of such a number, the trace goes on with an answer given beforehand, and a marker in the graph says what was
asked.
`repl_fx.tracing.control_flow` makes one graph of traces with different answers.
"""

from __future__ import annotations

import operator
import os
import random
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partialmethod
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from repl_fx._torch import define_operator, has_no_value
from repl_fx.errors import Untraceable
from repl_fx.graph.decisions import Comparison
from repl_fx.running.alone import is_bystander
from repl_fx.running.code_names import is_own_module
from repl_fx.tracing.asking import HANDED_ON, asking_code, is_library, module_of, outwards
from repl_fx.tracing.functions_watched import FunctionsWatched, Run, Watcher

# Functions that return one number when they are called without a size, and the most arguments they take for that.
_PYTHON_DRAWS: tuple[tuple[Any, str, int], ...] = (
    (random, "random", 0),
    (random, "uniform", 2),
    (np.random, "random", 0),
    (np.random, "random_sample", 0),
    (np.random, "rand", 0),
    (np.random, "uniform", 2),
)
_MODULES_OF_DRAWS = ("random", "secrets", "uuid")

# The operator that marks a decision in a traced graph.
DECISION = define_operator(
    "decision(Tensor[] condition, int index) -> Tensor", lambda condition, index: torch.empty(())
)
# Nothing uses its result.
has_side_effect(DECISION)

# The class, of whose attributes mypy knows the values alone.
_TENSOR: Any = Tensor
_OF_MEMORY = ("storage_offset", "untyped_storage", "data_ptr", *HANDED_ON)
# What no graph can answer for other inputs.
_ASKED_OF_INPUTS: dict[Any, str] = {
    **{
        getattr(Tensor, name).__get__: "whether a tensor requires a gradient"
        for name in ("requires_grad", "is_leaf", "grad_fn", "grad", "retains_grad")
    },
    **dict.fromkeys((Tensor.is_inference, torch.is_inference), "whether a tensor is one of torch.inference_mode"),
    _TENSOR._version.__get__: "how often a tensor was written to",
    **dict.fromkeys((_TENSOR._is_view, _TENSOR._base.__get__), "whether a tensor is a view"),
    **{getattr(Tensor, name): "for the memory of a tensor" for name in _OF_MEMORY},
}

# The code and the line of a model that ask; None where torch asks.
Place = tuple[CodeType, int] | None

# Layers of the deepest models, a few times over.
_MOST = 512


class DataDependentBranches:
    """Answers what a forward asks about random numbers, during one trace.

    Args:
        answers: to the questions, in the order they are asked; no to those after the last.
        survived: the answers to questions of which the model does not survive the other, by who asks.
        aside: whether the trace is inside a leaf call, whose decisions are the leaf's own.

    Attributes:
        compared: where the forward takes numbers out of tensors that it compares, and uses for nothing else.
        taken: where it took the other numbers out of tensors, by their symbols.
        asked: for each question, the comparison of a number of Python's generator, or None where it is about a tensor.
        given: for each question, who asks, and the answer.
    """

    def __init__(self, answers: Sequence[bool], survived: Mapping[Place, bool], aside: Callable[[], bool]) -> None:
        self.answers = tuple(answers)
        self.survived = survived
        self.aside = aside
        self.compared: Collection[Place] = ()
        self.taken: dict[str, Place] = {}
        self.asked: list[Comparison | None] = []
        self.given: list[tuple[Place, bool]] = []
        self._stated: Tensor | None = None
        # Tensors whose truth was asked for, as they were then, with the answer: who asks again is told the same.
        self._answered: dict[tuple[int, int], tuple[Tensor, bool]] = {}

    def watch(self, func: Any, args: Any, kwargs: Any, run: Run) -> Any:
        """Answer for tensors that have no value."""
        # A truth taken out of its tensor is asked for later. Where it is used as a number, the traces differ.
        truth = func is Tensor.__bool__ or (func is Tensor.item and args[0].dtype is torch.bool)
        if truth and args[0] is self._stated:
            run(torch._assert_async, args[:1], {})
            return True
        if truth and has_no_value(args[0]):
            return self.decide(args[0], None)
        if func is torch._assert and has_no_value(args[0]):
            return run(torch._assert_async, args[:1], {})
        if func is Tensor.item and has_no_value(args[0]) and not self.aside():
            place = _place(asking_code())
            if place in self.compared:
                return Drawn(self, args[0])
            number = run(func, args, kwargs)
            self.taken[str(number)] = place
            return number
        if func in _ASKED_OF_INPUTS and has_no_value(args[0]) and not self.aside() and asking_code():
            raise Untraceable(f"the forward asks {_ASKED_OF_INPUTS[func]}, which its input decides")
        if getattr(func, "__name__", "") == "_is_all_true" and has_no_value(args[0]):
            # `torch._check_tensor_all` and torch.distributions state the truth of their condition, and ask nothing.
            self._stated = run(Tensor.all, args, kwargs)
            return self._stated
        return run(func, args, kwargs)

    def decide(self, condition: Tensor | None, comparison: Comparison | None) -> bool:
        """The answer to a question, which is marked in the graph."""
        if self.aside():
            return False
        known = None if condition is None else (id(condition), condition._version)
        if known in self._answered:
            return self._answered[known][1]
        index = len(self.asked)
        if index >= _MOST:
            raise Untraceable(f"the forward decides more than {_MOST} times, as a loop would")
        self.asked.append(comparison)
        DECISION([] if condition is None else [condition], index)
        place = _place(asking_code())
        answer = self.survived.get(place, index < len(self.answers) and self.answers[index])
        self.given.append((place, answer))
        if condition is not None and known is not None:
            self._answered[known] = condition, answer
        return answer

    def places_in(self, problem: Exception) -> set[Place]:
        """The places where the forward took numbers out of tensors, the comparison of which ended a trace."""
        comparison = str(problem).partition("data-dependent expression")[2].partition("(Size-like")[0]
        return {self.taken[word] for word in re.findall(r"\w+", comparison) if self.taken.get(word) is not None}


def _place(frame: FrameType | None) -> Place:
    return frame and (frame.f_code, frame.f_lineno)


@dataclass(eq=False)
class Drawn:
    """A number without a value, drawn or computed; it can be compared with a number, and nothing else done with it."""

    _branches: DataDependentBranches
    _origin: Tensor | tuple[Callable[..., Any], tuple[Any, ...]]
    _used: bool = False

    def _ask(self, compare: Callable[[Any, Any], Any], other: Any = 0) -> bool:
        if not isinstance(other, (int, float, torch.SymInt)):
            raise Untraceable(f"a number that is drawn or computed is compared with a {type(other).__name__}")
        if isinstance(self._origin, Tensor):
            return self._branches.decide(compare(self._origin, other), None)
        if self._used:
            raise Untraceable("one random number decides twice")
        self._used = True
        return self._branches.decide(None, Comparison(*self._origin, compare, other))

    __lt__ = partialmethod(_ask, operator.lt)
    __le__ = partialmethod(_ask, operator.le)
    __gt__ = partialmethod(_ask, operator.gt)
    __ge__ = partialmethod(_ask, operator.ge)
    __eq__ = partialmethod(_ask, operator.eq)
    __ne__ = partialmethod(_ask, operator.ne)
    __bool__ = partialmethod(_ask, operator.ne)

    def _refuse(self, *_: Any) -> Any:
        raise Untraceable("a number that is drawn or computed is compared, or used otherwise than a trace can follow")

    __index__ = __int__ = __float__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = _refuse


@contextmanager
def recorded(branches: DataDependentBranches, *others: Watcher) -> Iterator[None]:
    """Let `branches` answer for the time of a trace, and refuse other numbers of Python's or numpy's generator.

    Where the forward seeds the generator with a constant before it takes any, they are the same in each call, and the
    graph holds them. Afterwards the generators are as they were. Leaf calls may draw each time.

    Args:
        others: see the functions of the trace too, those of torch that `branches` lets run.

    Raises:
        Untraceable: the forward takes numbers without a seed: the graph would hold those drawn in the trace.
    """
    generators = _Generator(random, "Python's", random.getstate), _Generator(np.random, "numpy's", np.random.get_state)
    urandom, own_seed = os.urandom, random.Random.seed

    def refuse() -> None:
        drawing = sys._getframe(2)
        code = next(seen for seen in outwards(drawing) if module_of(seen) not in _MODULES_OF_DRAWS)
        # Python's own library has uses for random numbers, such as names of files; others name what they make, as einx
        # does the axes of its expressions.
        is_name = is_library(code) or (module_of(drawing) == "uuid" and not is_own_module(module_of(code)))
        if not (branches.aside() or is_bystander() or is_name):
            raise Untraceable("the forward takes random numbers that no seed decides, and a graph would repeat them")

    def entropy(count: int) -> bytes:
        refuse()
        return urandom(count)

    def seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
        if a is None:
            refuse()
        own_seed(generator, a, version)

    def check(error: type[BaseException] | None, *_: Any) -> None:
        # The numbers are the reason also where a library fails on what the forward makes of them.
        if error is None or issubclass(error, Exception):
            for generator in generators:
                generator.check()

    with ExitStack() as undone:
        # From `random._urandom` come the numbers of `secrets` too, and the seeds of numpy's generators.
        for owner, name, instead in (
            (os, "urandom", entropy), (random, "_urandom", entropy), (random.Random, "seed", seed)
        ):  # fmt: skip
            undone.enter_context(patch.object(owner, name, instead))
        undone.callback(random.setstate, random.getstate())
        undone.callback(np.random.set_state, np.random.get_state())
        for generator in generators:
            seeding = generator.seeding(generator.module.seed)
            undone.enter_context(patch.object(generator.module, "seed", seeding))
        of = {generator.module: generator for generator in generators}
        for module, name, most in _PYTHON_DRAWS:
            stand_in = _stand_in(branches, of[module], getattr(module, name), most)
            undone.enter_context(patch.object(module, name, stand_in))
        undone.push(check)
        with FunctionsWatched([branches, *others]):
            yield


class _Generator:
    """One of the random generators that are not torch's, during a trace.

    Attributes:
        seeded: the forward has seeded it with a constant, before it took a number.
        compared: the forward has taken a number that it compares.
    """

    def __init__(self, module: Any, whose: str, state: Callable[[], Any]) -> None:
        self.module = module
        self.seeded = False
        self.compared = False
        self._whose = whose
        self._state = state
        self._before = state()

    def seeding(self, function: Callable[..., None]) -> Callable[..., None]:
        """The stand-in for the function that seeds the generator."""

        def seed(value: Any = None, *args: Any, **kwargs: Any) -> None:
            if not is_bystander():
                if not self.seeded:
                    self.check()
                self.seeded = isinstance(value, (int, np.integer))
            function(value, *args, **kwargs)

        return seed

    def check(self) -> None:
        """Refuse a forward whose numbers are others in each call."""
        if not self.seeded and not all(map(np.array_equal, self._before, self._state())):
            raise Untraceable(
                f"the forward takes numbers from {self._whose} random generator, and a graph would repeat those of the "
                "trace"
            )
        if self.seeded and self.compared:
            raise Untraceable(f"the forward seeds {self._whose} random generator after it has used it")


def _stand_in(
    branches: DataDependentBranches, generator: _Generator, function: Callable[..., Any], most: int
) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        if is_bystander() or generator.seeded or branches.aside() or kwargs or len(args) > most:
            return function(*args, **kwargs)
        generator.compared = True
        return Drawn(branches, (function, args))

    return draw
