"""The sizes that a graph is right for: questions about sizes that a trace answered, checked at the inputs.

A trace follows one way through Python code, and writes numbers where code asks for some:

    source   if x.shape[1] > 6: …            for _ in range(x.shape[1] // 4): …
    graph    check_sizes(x)                  x.shape[1] <= 6, x.shape[1] // 4 == 2, each with the line that asks

The graph then refuses inputs for which the source goes another way. Operators ask too, whether sizes are equal that
are added or put side by side: where they are not, the source itself stops, and the graph says so in front.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, fx, nn

from repl_fx._torch import (
    ShapeEnv,
    condition_of,
    example_of,
    fixed_symbols,
    has_example,
    is_truth,
    limited_symbols,
    made_equal,
    may_not_fix,
    numbers_followed,
    size_evaluations,
    symbol_of,
    whole_number,
)
from repl_fx.errors import Untraceable
from repl_fx.graph.axes import checks_by_name, size_checks, tensor_inputs, with_names
from repl_fx.graph.runtime import SizeCheck, check_shape
from repl_fx.graph.size_limits import Limit, limits_of, needed_beside, those_beside
from repl_fx.passes.driver import Result
from repl_fx.tracing.asking import first_argument, is_machinery, is_models_code, line_of, module_of, outwards

# Characters of different expressions of sizes in one trace. Networks of which all sizes can be known write up to
# 35,000, and a trace takes the longer the more there are.
_MOST_WRITTEN = 60_000
# Characters of one such expression. Networks of which all sizes can be known come to 660, the others get to thousands,
# long before they have written the most in all.
_LONGEST = 700
# Functions of torch that refuse operands whose sizes do not go together; those of the module torch are `torch._check`.
_REFUSING = frozenset(
    {"infer_size", "_cat_meta", "_broadcast_shapes", "broadcast_shapes", "expect_true", "_verify_batch_size"}
)
_SLICES = frozenset({"slice_forward", "_compute_slice_index"})
_SPLITS, _DEEP = ("_reshape_view_helper", "_collapse_view"), 16
# Modules that hand a question on, besides torch itself, which holds the symbols.
_HANDING_ON = ("torch.fx.experimental.", "torch._guards", "repl_fx._torch", "repl_fx.tracing.size_questions")
# What an export has in the place of Python's `min`, `max` and `math.pow`, by its module.
_BUILTINS = ("torch._export.non_strict_utils", ("_tensor_min_max", "<lambda>"))
_NOT_THE_MODELS = ("torch", "sympy", "repl_fx")
_COMPARISONS = ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__")
# Metadata of a tensor among the inputs: why dimensions of it are fixed.
FIXED = "fixed"
# Metadata of a check: a slice asks, and the graph may be right where the check does not hold.
CUT = "cut"


@dataclass(eq=False)
class SizeQuestions:
    """The questions about symbolic sizes in one trace.

    Attributes:
        in_leaf: whether a leaf of the model is running, which answers for itself when the graph runs.
        reasons: why the trace has no symbols for sizes, by the number of the tensor and the dimension.
        rest: why it has none for others.
        decides: the trace is to be joined with others, in which other sizes may be equal.
        numbers: sizes are plain numbers where code has no other use for them, which fixes them.
        plainly: comparisons of sizes are answered when the code makes them, and not when it asks for their truth.
        unlimited: whether the trace is of no use, as seen so far, once sizes are only right up to a number.
        held: conditions on sizes that hold in the trace, with who asks.
        fixed: symbols that an answer has fixed, each with the line of the model that asks.
        whole: the names of modules whose code asks for whole numbers by `int`, by their ids.
        worded: the sizes that the code made text of, which is that of the example.
        exceeded: the line of the model at which the sizes became too involved to reason about; None where they did not.
        found: after `settle`, the conditions that inputs are checked for; those of the model's code with who asks.
        places: after `settle`, the number of the tensor and the dimension for the name of each symbol.
        pinned: after `settle`, those of sizes that are symbolic and can be no other, with the line that needs it so.
    """

    in_leaf: Callable[[], bool]
    reasons: Mapping[tuple[int, int], str]
    rest: str
    decides: bool
    numbers: bool
    plainly: bool
    unlimited: Callable[[], bool]
    held: dict[Any, _Held] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    whole: dict[int, dict[str, Any]] = field(default_factory=dict)
    pinned: dict[tuple[int, int], str] = field(default_factory=dict)
    worded: list[torch.SymInt] = field(default_factory=list)
    exceeded: str | None = None
    found: list[tuple[Limit, _Held | None]] = field(default_factory=list)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    _ways: dict[tuple[CodeType, ...], _Asking] = field(default_factory=dict)
    # The expressions that were asked for, each with whether there are sizes in it.
    _known: dict[Any, bool] = field(default_factory=dict)
    _written: int = 0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the questions of what runs inside; outside of torch the text of a size is that of its number."""
        own = torch.SymInt.__repr__

        def text(size: torch.SymInt, form: str = "") -> str:
            if is_machinery(sys._getframe(1)) or not has_example(size):
                return own(size)
            if not self.in_leaf():
                self.worded.append(size)
            return format(int(size) if self.numbers else example_of(size), form)

        answers: Any = {"__repr__": text, "__format__": text}
        if self.plainly:
            answers |= {name: self._plain(getattr(torch.SymInt, name)) for name in _COMPARISONS}
        with size_evaluations(self._before, self._after), patch.multiple(torch.SymInt, **answers):
            yield

    def _plain(self, own: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A comparison that has a plain answer for the model's code."""

        def compare(size: Any, other: Any) -> Any:
            result = own(size, other)
            plain = isinstance(result, torch.SymBool) and not is_machinery(sys._getframe(1))
            return bool(result) if plain else result

        return compare

    def _before(self, expression: Any, frame: FrameType) -> bool:
        self._require_short(expression, frame)
        # Of the order of strides (`n // 2 < 2`) a trace would know that `n // 4` is 0, and leave out the slice from
        # there. An equality may fix a size, which is seen.
        is_order = self._known[expression] and may_not_fix(expression)
        return not is_order or not self._asked(frame).of_strides

    def _require_short(self, expression: Any, frame: FrameType) -> None:
        if expression in self._known:
            return
        self._known[expression] = bool(getattr(expression, "free_symbols", ()))
        written = str(expression)
        self._written += len(written)
        # A sum of many sizes is long, and nothing to solve; and after the sizes that are fixed then, no others can be.
        is_long = len(written) > _LONGEST and "//" in written and not self.rest
        if is_long or self._written > _MOST_WRITTEN:
            self.exceeded = _place(frame)
            raise Untraceable(f"the arithmetic on sizes is too involved to follow{self.exceeded}")

    def _after(self, sizes: ShapeEnv, expression: Any, answer: Any, frame: FrameType) -> None:
        if not self._known[expression]:
            return
        if answer and (not is_truth(expression) or expression.is_Relational):
            for symbol in fixed_symbols(sizes, expression) - self.fixed.keys():
                self.fixed[symbol] = f"{', by an operator' * is_truth(expression)}{_place(frame)}"
        if answer and self.unlimited() and (limited := limited_symbols(sizes, expression)):
            raise Untraceable(f"sizes are only right up to a number{_place(frame)} ({', '.join(limited)})")
        asked = self._asked(frame)
        if asked.whole is not None:
            self.whole[id(asked.whole)] = asked.whole
        by_operator = is_truth(expression) and not asked.by_the_model
        if (asked.cuts or (answer and asked.refuses)) if by_operator else not self.in_leaf():
            condition = condition_of(expression, answer)
            known = self.held.get(condition)
            # An operator that asked first stops at the other answer, and this code goes on by it.
            if known is None or (known.limit and not asked.refuses):
                module = None if asked.refuses else _running(frame)
                self.held[condition] = _Held(_place(frame), asked.refuses, by_operator and asked.cuts, module)

    def _asked(self, frame: FrameType) -> _Asking:
        frames = list(islice(outwards(frame), _DEEP))
        way = tuple(seen.f_code for seen in frames)
        if way not in self._ways:
            self._ways[way] = _Asking.by(frames)
        return self._ways[way]

    def settle(self, shapes: Sequence[Sequence[int | torch.SymInt]]) -> list[tuple[int, int]]:
        """Find what inputs have to be checked for, once the trace is done.

        Args:
            shapes: of the tensors among the inputs, with the symbols of the trace.

        Returns:
            The number of the tensor and the dimension of each size that is symbolic and can be no other.

        Raises:
            Untraceable: a condition that Python has no words for.
        """
        self._make_equal(shapes)
        examples: dict[str, int] = {}
        sizes: ShapeEnv | None = None
        equal: list[Limit] = []
        for number, shape in enumerate(shapes):
            for dim, size in enumerate(shape):
                # Sizes that others follow from have symbols of their own.
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    sizes = size.node.shape_env
                    first = self.places.setdefault(str(size), (number, dim))
                    examples[str(size)] = example_of(size)
                    if first != (number, dim) and not self.decides:
                        equal.append(self._equal(str(size), (number, dim), symbol_of(size)))
        if sizes is None:
            return []
        decided: dict[Any, _Held] = {}
        limits: dict[Any, str] = {}
        for asked, held in self.held.items():
            # With the numbers of the sizes that the trace has fixed.
            condition: Any = sizes.replace(asked)
            symbols = set(map(str, condition.free_symbols))
            # A condition on values of tensors is checked where these are computed.
            if symbols and symbols <= examples.keys():
                if held.limit:
                    limits.setdefault(condition, held.place)
                else:
                    decided.setdefault(condition, held)
        try:
            known = [Limit.of(condition, place) for condition, place in limits.items()]
            rules, pinned = limits_of(known, examples, {name: self.places[name][0] for name in examples})
            ways: list[tuple[Limit, _Held]] = []
            # Slices ask much that holds at all sizes, such as of a picture that was padded before.
            for condition, held in sorted(decided.items(), key=lambda item: item[1].cut):
                way, others = Limit.of(condition, held.place), [*rules, *(one for one, _ in ways)]
                if not held.cut or needed_beside(way, others, examples):
                    ways.append((way, held))
            # Where the code goes one way for such sizes alone, others are refused for that.
            rules = those_beside(rules, [way for way, _ in ways], examples)
            self.found = [*((limit, None) for limit in (*rules, *equal)), *ways]
        except ValueError as problem:
            raise Untraceable(str(problem)) from problem
        for name in pinned:
            needs = (place for condition, place in limits.items() if name in map(str, condition.free_symbols))
            self.pinned[self.places[name]] = next(needs, "")
        return list(self.pinned)

    def modules(self) -> list[nn.Module]:
        """After `settle`, the modules whose code asks."""
        asking = (held.module for _, held in self.found if held is not None)
        return list(dict.fromkeys(module for module in asking if module is not None))

    def _make_equal(self, shapes: Sequence[Sequence[int | torch.SymInt]]) -> None:
        """Let the trace know of sizes that they are one, of which the model's code asked whether either is larger."""
        symbols = {symbol: size for shape in shapes for size in shape if (symbol := symbol_of(size))}
        for one, other in made_equal(condition for condition, held in self.held.items() if not held.limit):
            if one in symbols and other in symbols:
                bool(symbols[one] == symbols[other])

    def _equal(self, name: str, place: tuple[int, int], symbol: str | None) -> Limit:
        """The condition that a size is equal to that of a name, which an operator has asked for."""
        other = f"{name}_of_{place[0]}_{place[1]}"
        self.places[other] = place
        several = {c: set(map(str, c.free_symbols)) for c in self.held if len(c.free_symbols) > 1}
        asked = (self.held[condition].place for condition, names in several.items() if symbol in names)
        return Limit(f"{name} == {other}", (name, other), next(asked, ""))

    def why_fixed(self, number: int, shape: Sequence[int | torch.SymInt]) -> dict[int, str]:
        """Why dimensions of a tensor among the inputs are fixed, as the ends of phrases; none where it is not known."""
        symbols = map(symbol_of, shape)
        reasons = {
            dim: self.reasons.get((number, dim), self.rest) if symbol is None else self.fixed.get(symbol, "")
            for dim, symbol in enumerate(symbols)
        }
        return {dim: reason for dim, reason in reasons.items() if reason}


@dataclass(frozen=True)
class _Held:
    """Who asks whether a condition holds.

    Attributes:
        place: the line of the model, as the end of a phrase.
        limit: the model itself stops where the condition does not hold.
        cut: a slice asks, which has another length where it does not hold.
        module: the innermost module whose code asks.
    """

    place: str
    limit: bool
    cut: bool
    module: nn.Module | None


@dataclass(frozen=True)
class _Asking:
    """The form of a question.

    Attributes:
        by_the_model: in Python, by code of the model or of torch's functions for models, which goes on by the answer.
        refuses: by an operator that stops at the other answer.
        cuts: by a slice, whose length is another at the other answer; code may go on by that.
        of_strides: by an operator, for the strides of its result; it goes on by the answer nowhere else.
        whole: the names of the module whose code asks for a whole number by `int`; None where none does.
    """

    by_the_model: bool
    refuses: bool
    cuts: bool
    of_strides: bool
    whole: dict[str, Any] | None

    @classmethod
    def by(cls, frames: Sequence[FrameType]) -> _Asking:
        """Look at the frames that a question came through, innermost first."""
        handing = list(takewhile(_hands_on, frames))
        asking = frames[len(handing) :] or frames[-1:]
        names = [seen.f_code.co_name for seen in asking]
        refuses = any(
            seen.f_code.co_name in _REFUSING or (module_of(seen) == "torch" and "check" in seen.f_code.co_name)
            for seen in (*handing, *asking[:3])
        )
        if names[0] != "infer_size" and any(name.startswith(_SPLITS) for name in names):
            # One way to split a view in steps, where others may do; whether it fits is asked by `infer_size`.
            refuses = False
        # The truth, or the number, of a symbol is asked for in torch's own module.
        python = any(module_of(seen) == "torch" for seen in handing)
        asker = module_of(asking[0])
        model = asker.split(".")[0] not in _NOT_THE_MODELS or asker.startswith(("torch.nn.", "torch.functional"))
        # In front of it are the modes that a trace has.
        model |= any(seen.f_code.co_name == "_assert" for seen in handing)
        whole = model and any(module_of(seen) == "torch" and seen.f_code.co_name == "__int__" for seen in handing)
        cuts = names[0] in _SLICES
        of_strides = asker == "torch._prims_common" and not refuses
        return cls(python and model and not refuses, refuses, cuts, of_strides, asking[0].f_globals if whole else None)


def _hands_on(frame: FrameType) -> bool:
    instead = module_of(frame) == _BUILTINS[0] and frame.f_code.co_name in _BUILTINS[1]
    return instead or module_of(frame) == "torch" or module_of(frame).startswith(_HANDING_ON)


def _place(frame: FrameType) -> str:
    """The line of the model that a frame runs, as the end of a phrase; empty where no model's code is running."""
    seen = next(filter(is_models_code, outwards(frame)), None)
    return "" if seen is None else f" (at {line_of(seen)})"


def _running(frame: FrameType) -> nn.Module | None:
    """The innermost module of the model's whose method a frame runs in."""
    owners = ((first_argument(seen), seen) for seen in outwards(frame))
    return next((one for one, seen in owners if isinstance(one, nn.Module) and is_models_code(seen)), None)


@contextmanager
def lengths_symbolic() -> Iterator[None]:
    """Let `len` of a tensor whose first size is symbolic be that size; Python's own has to return a number.

    And `min`, `max` and `math.pow` of sizes what Python's are.
    """
    own = builtins.len

    def length(value: Any, /) -> Any:
        first: Any = value.shape[0] if isinstance(value, Tensor) and value.ndim else None
        return first if isinstance(first, torch.SymInt) else own(value)

    with patch.object(builtins, "len", length), numbers_followed():
        yield


def sizes_numbers() -> AbstractContextManager[object]:
    """Let a symbolic size be a key, an array of NumPy's and what `divmod` takes: its number, which is fixed then."""
    answers: Any = {
        "__hash__": lambda size: hash(int(size)),
        "__array__": lambda size, *args, **kwargs: np.asarray(int(size)),
        "__divmod__": lambda size, other: (size // other, size % other),
    }
    patched: AbstractContextManager[object] = patch.multiple(torch.SymInt, create=True, **answers)
    return patched


class _WholeKind(type):
    """The class of `_Whole`, which passes for Python's `int`."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if len(args) == 1 else None
        size = whole_number(given) if isinstance(given, torch.SymFloat) else given
        return size if isinstance(size, torch.SymInt) else int(*args, **kwargs)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, (int, torch.SymInt))

    def __subclasscheck__(cls, kind: type) -> bool:
        return issubclass(kind, int)

    def __eq__(cls, other: Any) -> bool:
        return other is int or other is cls

    def __hash__(cls) -> int:
        return hash(int)


class _Whole(int, metaclass=_WholeKind):
    """Python's `int`, but for a symbolic size, or a quotient that is one: Python's own has to return a number."""


@contextmanager
def whole_symbolic(modules: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Let `int` of a symbolic size be that size in the code of modules, each given by its names."""
    with ExitStack() as undone:
        for names in modules:
            if "int" not in names:
                undone.callback(names.pop, "int", None)
                names["int"] = _Whole
        yield


def add_checks(
    graph: fx.Graph, questions: SizeQuestions, tensors: Sequence[fx.Node], asking: Mapping[nn.Module, Sequence[str]]
) -> None:
    """Let a graph refuse inputs of sizes for which a question of its trace has another answer.

    Args:
        questions: settled.
        graph: its end so far is where its inputs are known.
        tensors: the tensors among its inputs, with the symbolic sizes of the trace.
        asking: the paths of the modules that ask the same, for each that was seen to ask.
    """
    for number, tensor in enumerate(tensors):
        tensor.meta[FIXED] = questions.why_fixed(number, tensor.meta["val"].shape)
    places = questions.places
    names = {name: f"{tensors[number].name}.shape[{dim}]" for name, (number, dim) in places.items()}
    for limit, by in questions.found:
        takes = sorted({places[name][0] for name in limit.names})
        where = tuple((name, takes.index(places[name][0]), places[name][1]) for name in limit.names)
        words = with_names(limit.condition, names)
        within = () if by is None or by.module is None else tuple(asking[by.module])
        check = SizeCheck(limit.condition, where, words, limit.place, by is None, within)
        _ask(graph, check, [tensors[number] for number in takes], cut=by is not None and by.cut)


def ask_of_cuts_in_both_(*graphs: fx.Graph) -> None:
    """Let the graphs of both modes refuse the sizes that either does for a slice, so that these are tried in both."""
    if len({*graphs}) == 1:
        return
    inputs = [tensor_inputs(graph) for graph in graphs]
    named = [zip(size_checks(graph), checks_by_name(graph), strict=True) for graph in graphs]
    cuts = [{asked: node for (node, _), asked in checks if node.meta[CUT]} for checks in named]
    for check, names in dict.fromkeys(chain(*cuts)):
        if not all(_are_sizes(check, [tensors[name] for name in names]) for tensors in inputs):
            continue
        for graph, tensors, own in zip(graphs, inputs, cuts, strict=True):
            if (check, names) in own:
                graph.erase_node(own[check, names])
            *_, last = (
                node for node in graph.nodes if node.target is check_shape or isinstance(node.target, SizeCheck)
            )
            with graph.inserting_after(last):
                _ask(graph, check, [tensors[name] for name in names], cut=True)


def _are_sizes(check: SizeCheck, tensors: Sequence[fx.Node]) -> bool:
    """Tell whether the sizes that a check is on have its names for them in a graph."""
    return all(str(tensors[number].meta["val"].shape[dim]) == name for name, number, dim in check.sizes)


def _ask(graph: fx.Graph, check: SizeCheck, tensors: Sequence[fx.Node], *, cut: bool) -> None:
    graph.call_function(check, tuple(tensors)).meta |= {"val": None, CUT: cut}


def refused_sizes(gm: fx.GraphModule) -> list[str]:
    """The conditions under which a graph takes inputs of other sizes, in words."""
    return [check.words for _, check in size_checks(gm.graph)]


def refuse_sizes_(gm: fx.GraphModule, refused: Collection[str]) -> Result:
    """Let a graph refuse no more than another graph of its model did, whose example inputs the model runs on."""
    return drop_checks_(gm, [node.name for node, check in size_checks(gm.graph) if check.words not in refused])


def drop_checks_(gm: fx.GraphModule, names: Collection[str]) -> Result:
    """Let a graph refuse sizes no more by the checks of these names."""
    for node, _ in size_checks(gm.graph):
        if node.name in names:
            gm.graph.erase_node(node)
    return Result(gm, tuple(names))
