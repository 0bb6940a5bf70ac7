"""The sizes that a graph is right for: questions about sizes that a trace answered, checked at the inputs.

A trace follows one way through Python code, and writes numbers where code asks for some:

    source   if x.shape[1] > 6: …            for _ in range(x.shape[1] // 4): …
    graph    check_sizes(x)                  x.shape[1] <= 6, x.shape[1] // 4 == 2, each with the line that asks

The graph then refuses inputs for which the source goes another way. Operators ask too, whether sizes are equal that
are added or put side by side: where they are not, the source itself stops, and the graph says so in front.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx

from repl_fx._torch import (
    ShapeEnv,
    code_of,
    condition_of,
    example_of,
    fixed_symbols,
    is_truth,
    settled_condition,
    size_evaluations,
    symbol_of,
)
from repl_fx.errors import Untraceable
from repl_fx.graph.runtime import SizeCheck
from repl_fx.passes.driver import Result
from repl_fx.tracing.model_checks import is_models_code
from repl_fx.tracing.size_limits import Limit, limits_of

# Characters of different expressions of sizes in one trace. Convolutional networks have a few thousand, networks of
# windows that are padded (Swin) a million, and a trace takes the longer the more there are.
_MOST_WRITTEN = 120_000
# Functions of torch that refuse operands whose sizes do not go together; those of the module torch are `torch._check`.
_REFUSING = frozenset({"infer_size", "_cat_meta", "_broadcast_shapes", "broadcast_shapes", "expect_true"})
# Modules that hand a question on: where symbols live, and where they are asked.
_HANDING_ON = ("torch", "torch.fx.experimental.", "torch._guards", "repl_fx._torch", "repl_fx.tracing.size_questions")
_NOT_THE_MODELS = ("torch", "sympy", "repl_fx")
# Metadata of a tensor among the inputs: why dimensions of it are fixed.
FIXED = "fixed"
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


class SizeQuestions:
    """The questions about symbolic sizes in one trace.

    Args:
        in_leaf: whether a leaf of the model is running, which answers for itself when the graph runs.

    Attributes:
        held: conditions on sizes that hold in the trace, each with the line of the model that asks, and whether the
            model itself stops where one does not hold.
        fixed: symbols that an answer has fixed, each with the line of the model that asks.
        exceeded: the line of the model at which the sizes became too involved to reason about; None where they did not.
        unasked: the reason, as the end of a phrase, why sizes that the trace has no symbols for are fixed.
    """

    def __init__(self, in_leaf: Callable[[], bool], unasked: str = "") -> None:
        self.unasked = unasked
        self.held: dict[Any, tuple[str, bool]] = {}
        self.fixed: dict[str, str] = {}
        self.exceeded: str | None = None
        self._in_leaf = in_leaf
        self._known: set[Any] = set()
        self._written = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the questions of what runs inside."""
        with size_evaluations(self._before, self._after):
            yield

    def _before(self, expression: Any, frame: FrameType) -> None:
        if expression in self._known:
            return
        self._known.add(expression)
        self._written += len(str(expression))
        if self._written > _MOST_WRITTEN:
            self.exceeded = _place(frame)
            raise Untraceable(f"the arithmetic on sizes is too involved to follow{self.exceeded}")

    def _after(self, sizes: ShapeEnv, expression: Any, answer: Any, frame: FrameType) -> None:
        if not getattr(expression, "free_symbols", ()):
            return
        if answer and (not is_truth(expression) or expression.is_Relational):
            for symbol in fixed_symbols(sizes, expression) - self.fixed.keys():
                self.fixed[symbol] = f"{', by an operator' * is_truth(expression)}{_place(frame)}"
        asked = _Asked.by(frame)
        if is_truth(expression) and not asked.by_the_model:
            condition = condition_of(expression, answer) if answer and asked.refuses else None
        else:
            condition = None if self._in_leaf() else condition_of(expression, answer)
        if condition is not None and condition not in self.held:
            self.held[condition] = _place(frame), asked.refuses


@dataclass(frozen=True)
class _Asked:
    """How a question is asked.

    Attributes:
        by_the_model: in Python, by code of the model or of torch's functions for models, which goes on by the answer.
        refuses: by an operator that stops at the other answer.
    """

    by_the_model: bool
    refuses: bool

    @classmethod
    def by(cls, frame: FrameType) -> _Asked:
        """Look at the frames that a question came through."""
        python = refuses = False
        while frame.f_back is not None and (name := _module(frame)).startswith(_HANDING_ON[1:]) or name == "torch":
            refuses = refuses or frame.f_code.co_name in _REFUSING or name == "torch" and "check" in frame.f_code.co_name
            # The truth, or the number, of a symbol is asked for in torch's own module.
            python = python or name == "torch"
            frame = frame.f_back
        asker = _module(frame)
        model = asker.split(".")[0] not in _NOT_THE_MODELS or asker.startswith(("torch.nn.", "torch.functional"))
        for _ in range(3):
            refuses = refuses or frame.f_code.co_name in _REFUSING
            frame = frame.f_back or frame
        return cls(python and model and not refuses, refuses)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _place(frame: FrameType | None) -> str:
    """The line of the model that a frame runs, as the end of a phrase; empty where no model's code is running."""
    while frame is not None and not is_models_code(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f" (at {frame.f_code.co_filename}, line {frame.f_lineno})"


@contextmanager
def lengths_symbolic() -> Iterator[None]:
    """Let `len` of a tensor whose first size is symbolic be that size; Python's own has to return a number."""
    own = builtins.len

    def length(value: Any, /) -> Any:
        if isinstance(value, Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
            return value.shape[0]
        return own(value)

    with patch.object(builtins, "len", length):
        yield


def add_checks(graph: fx.Graph, questions: SizeQuestions, tensors: Sequence[fx.Node]) -> None:
    """Let a graph refuse inputs of sizes for which a question of its trace has another answer.

    Args:
        graph: its end so far is where its inputs are known.
        tensors: the tensors among its inputs, with the symbolic sizes of the trace.

    Raises:
        Untraceable: a condition on sizes that are none of the inputs', or that Python has no words for.
    """
    for tensor in tensors:
        symbols = {dim: symbol_of(size) for dim, size in enumerate(tensor.meta["val"].shape)}
        why = {dim: questions.unasked if s is None else questions.fixed.get(s, "") for dim, s in symbols.items()}
        tensor.meta[FIXED] = {dim: reason for dim, reason in why.items() if reason}
    places: dict[str, tuple[int, int]] = {}
    examples: dict[str, int] = {}
    sizes: ShapeEnv | None = None
    for number, tensor in enumerate(tensors):
        for dim, size in enumerate(tensor.meta["val"].shape):
            # Sizes that others follow from have symbols of their own.
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                sizes = size.node.shape_env
                places.setdefault(str(size), (number, dim))
                examples[str(size)] = example_of(size)
    if sizes is None:
        return
    decided: dict[Any, str] = {}
    limits: dict[Any, str] = {}
    for asked, (place, refuses) in questions.held.items():
        condition = settled_condition(asked, sizes)
        symbols = set(map(str, condition.free_symbols))
        # A condition on values of tensors is checked where these are computed.
        if symbols and symbols <= places.keys():
            (limits if refuses else decided).setdefault(condition, place)
    try:
        found = [(limit, True) for limit in limits_of(limits, examples)]
        for condition, place in decided.items():
            names = sorted(map(str, condition.free_symbols))
            found.append((Limit(code_of(condition), tuple(names), place), False))
    except ValueError as problem:
        raise Untraceable(str(problem)) from problem
    for limit, stops in found:
        takes = sorted({places[name][0] for name in limit.names})
        where = tuple((name, takes.index(places[name][0]), places[name][1]) for name in limit.names)
        words = _SYMBOL.sub(lambda seen, at=places: _words(seen[0], at, tensors), limit.condition)
        check = SizeCheck(limit.condition, where, words, limit.place, stops)
        graph.call_function(check, tuple(tensors[number] for number in takes)).meta["val"] = None


def _words(name: str, places: Mapping[str, tuple[int, int]], tensors: Sequence[fx.Node]) -> str:
    if name not in places:
        return name
    number, dim = places[name]
    return f"{tensors[number].name}.shape[{dim}]"


def size_checks(graph: fx.Graph) -> list[fx.Node]:
    """The nodes of a graph that refuse sizes."""
    return [node for node in graph.nodes if isinstance(node.target, SizeCheck)]


def refused_sizes(gm: fx.GraphModule) -> list[str]:
    """The conditions under which a graph takes inputs of other sizes, in words."""
    return [node.target.words for node in size_checks(gm.graph) if isinstance(node.target, SizeCheck)]


def refuse_sizes_(gm: fx.GraphModule, refused: Collection[str]) -> Result:
    """Let a graph refuse no more than another graph of its model did, whose example inputs the model runs on."""
    return drop_checks_(gm, [n.name for n, words in zip(size_checks(gm.graph), refused_sizes(gm)) if words not in refused])


def drop_checks_(gm: fx.GraphModule, names: Collection[str]) -> Result:
    """Let a graph refuse sizes no more by the checks of these names."""
    for node in size_checks(gm.graph):
        if node.name in names:
            gm.graph.erase_node(node)
    return Result(gm, tuple(names))
